// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! apt with its own sources, lists and cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::command::{output, run};
use super::dirs::{lock, target_dir};
use super::suite::Suite;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads the packages into `dir`, which gets whole files only.
pub(super) fn download(names: &[&str], suite: Suite, dir: &Path) -> Result<()> {
    let _lock = lock(&target_dir().join("apt"))?;
    let config = configure()?;
    if fetch(&config, names, suite, dir).is_err() {
        // No lists yet, or lists so old that the mirror has newer versions.
        run(Command::new("apt-get")
            .arg("-c")
            .arg(&config)
            .args(["-q", "update"]))
        .context("update apt's private lists; does `apt-get update` work on this machine?")?;
        fetch(&config, names, suite, dir)
            .with_context(|| format!("download {names:?} of {}", suite.name()))?;
    }
    Ok(())
}

fn fetch(config: &Path, names: &[&str], suite: Suite, dir: &Path) -> Result<()> {
    let partial = tempfile::tempdir_in(dir).with_context(|| format!("make a folder in {dir:?}"))?;
    run(Command::new("apt-get")
        .arg("-c")
        .arg(config)
        .args(["-q", "download"])
        .args(names.iter().map(|name| format!("{name}/{}", suite.name())))
        .current_dir(partial.path()))?;
    for entry in fs::read_dir(partial.path())? {
        let entry = entry?;
        let to = dir.join(entry.file_name());
        fs::rename(entry.path(), &to).with_context(|| format!("move a package to {to:?}"))?;
    }
    Ok(())
}

/// Writes the private configuration and returns its path.
///
/// It is given by `-c`, which apt reads after the system's own files: proxies
/// and mirrors set there stay, while the hooks that write to the system's
/// caches after an update can be cleared.
fn configure() -> Result<PathBuf> {
    let dir = target_dir().join("apt");
    for sub in ["state/lists/partial", "cache/archives/partial", "sources.d"] {
        let path = dir.join(sub);
        fs::create_dir_all(&path).with_context(|| format!("create {path:?}"))?;
    }
    let mirror = mirror()?;
    let sources: String = Suite::ALL
        .iter()
        .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {} main\n", suite.name()))
        .collect();
    write(&dir.join("sources.list"), &sources)?;
    let at = dir.display();
    let config = format!(
        r#"Dir::State "{at}/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "{at}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{at}/sources.list";
Dir::Etc::sourceparts "{at}/sources.d";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    );
    let path = dir.join("apt.conf");
    write(&path, &config)?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {path:?}"))
}

/// Returns the site of Debian's main archive in the system's own sources.
fn mirror() -> Result<String> {
    let sites = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE)",
        "Created-By: Packages",
    ]))
    .context("ask apt for its mirror; this needs Debian's apt")?;
    let mirror = pick_mirror(&sites).map(str::to_owned);
    mirror.context("apt's sources name no archive of a Debian release from bookworm on")
}

fn pick_mirror(sites: &str) -> Option<&str> {
    sites
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(site, release)| {
            site.trim_end_matches('/').ends_with("/debian")
                && Suite::ALL.iter().any(|suite| suite.name() == *release)
        })
        .map(|(site, _)| site)
}

#[cfg(test)]
mod tests {
    use super::pick_mirror;

    #[test]
    fn the_main_archive_is_picked() {
        let sites = "https://deb.example.com/node nodistro\n\
            http://mirror.example.com/debian-security bookworm-security\n\
            http://mirror.example.com/debian bookworm-updates\n\
            http://mirror.example.com/debian bookworm\n";
        assert_eq!(pick_mirror(sites), Some("http://mirror.example.com/debian"));
        assert_eq!(pick_mirror(""), None);
    }
}
