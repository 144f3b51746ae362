// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Which programs the suite runs, and the folders that they are laid out in.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use super::command::output;
use super::dirs::{lock, target_dir};
use super::packages::{debs, unpack};
use super::suite::Suite;

/// Names a folder with a containerd that is run beside Debian's.
const EXTRA: &str = "RESNAP_TEST_CONTAINERD";

const CONTAINERD: [Suite; 3] = [Suite::Bookworm, Suite::Trixie, Suite::Forky];

/// runc of a newer suite wants a newer libc, this one runs on Debian 12; the
/// libseccomp2 that it needs is there wherever apt is.
const BOOKWORM: [&str; 6] = [
    "containerd",
    "runc",
    "busybox-static",
    "docker-registry",
    "prometheus",
    "umoci",
];

const TRIXIE: [&str; 2] = ["containerd", "nydus-snapshotter"];

/// Programs with every library that they load, so that neither the age of the system's libraries nor a
/// missing one matters.
const WITH_LIBRARIES: [&str; 21] = [
    "erofs-utils",
    "cryptsetup-bin",
    "openssl",
    "libblkid1",
    "libc6",
    "libcap2",
    "libcryptsetup12",
    "libdeflate0",
    "libdevmapper1.02.1",
    "libjson-c5",
    "liblz4-1",
    "liblzma5",
    "libpcre2-8-0",
    "libpopt0",
    "libselinux1",
    "libssl3t64",
    "libudev1",
    "libuuid1",
    "libxxhash0",
    "libzstd1",
    "zlib1g",
];

const FORKY: [&str; 1] = ["containerd"];

/// One containerd's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dist {
    bin: PathBuf,
    tools: PathBuf,
    version: (u32, u32, u32),
}

impl Dist {
    /// Returns the folder with `containerd`, `containerd-shim-runc-v2` and `ctr`.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Returns the folder with the programs that all containerds share: `runc`,
    /// `containerd-nydus-grpc`, `nydus-overlayfs`, `mkfs.erofs`, `fsck.erofs`,
    /// `dump.erofs`, `veritysetup`, `openssl`, a static `busybox`, `docker-registry`, `promtool`, `umoci` and the
    /// shim of containerd 1.7.
    pub fn tools(&self) -> &Path {
        &self.tools
    }

    /// As `containerd --version` says.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Such as `containerd 1.7.24`.
    pub fn name(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("containerd {major}.{minor}.{patch}")
    }

    /// Returns the same programs in the new folder `dir`, of which containerd says it has another version: so is seen
    /// what its clients do about that.
    ///
    /// # Errors
    /// The version is not as long as its own, or the files cannot be read or written.
    pub fn saying(&self, version: &str, dir: &Path) -> Result<Self> {
        let (major, minor, patch) = self.version;
        let own = format!("{major}.{minor}.{patch}");
        ensure!(
            own.len() == version.len(),
            "{version} is not as long as {own}"
        );
        fs::create_dir(dir)?;
        for program in fs::read_dir(&self.bin)? {
            let program = program?;
            if program.file_name() != "containerd" {
                symlink(program.path(), dir.join(program.file_name()))?;
            }
        }
        let path = dir.join("containerd");
        fs::copy(self.bin.join("containerd"), &path)?;
        let replace = format!("s/{}/{version}/g", own.replace('.', "[.]"));
        output(
            Command::new("sed")
                .env("LC_ALL", "C")
                .args(["-i", &replace])
                .arg(&path),
        )?;
        Self::open(dir.to_owned(), self.tools.clone())
    }

    fn open(bin: PathBuf, tools: PathBuf) -> Result<Self> {
        let text = output(Command::new(bin.join("containerd")).arg("--version"))?;
        let version = parse_version(&text)
            .with_context(|| format!("{bin:?}/containerd --version has no version: {text}"))?;
        for program in ["containerd-shim-runc-v2", "ctr"] {
            if !bin.join(program).is_file() {
                bail!("{bin:?} has no {program}");
            }
        }
        Ok(Self {
            bin,
            tools,
            version,
        })
    }
}

/// Returns the version in `containerd github.com/containerd/containerd 1.6.20~ds1 ...`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        let mut numbers = word.splitn(3, '.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().ok()
        });
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    })
}

/// Everything [`provision`] laid out.
#[derive(Debug, Clone)]
pub struct Provisioned {
    containerds: Vec<Dist>,
    tools: PathBuf,
}

impl Provisioned {
    /// Returns the containerds to test with, oldest first.
    pub fn containerds(&self) -> &[Dist] {
        &self.containerds
    }

    /// Returns the containerd whose version begins so: `containerd(1, 7)`.
    pub fn containerd(&self, major: u32, minor: u32) -> Result<&Dist> {
        self.containerds
            .iter()
            .find(|dist| (dist.version.0, dist.version.1) == (major, minor))
            .with_context(|| {
                let have: Vec<_> = self.containerds.iter().map(Dist::name).collect();
                format!("no containerd {major}.{minor} here, only {have:?}")
            })
    }

    /// Returns the newest containerd that is here.
    pub fn newest(&self) -> Result<&Dist> {
        self.containerds.last().context("no containerd is here")
    }

    /// See [`Dist::tools`].
    pub fn tools(&self) -> &Path {
        &self.tools
    }
}

/// Downloads and lays out all programs that the suite starts; what is there
/// already is kept.
pub fn provision() -> Result<Provisioned> {
    let root = target_dir().join("tools");
    let _lock = lock(&root)?;
    let bookworm = debs(&BOOKWORM, Suite::Bookworm)?;
    let trixie = debs(&TRIXIE, Suite::Trixie)?;
    let with_libraries = debs(&WITH_LIBRARIES, Suite::Trixie)?;
    let forky = debs(&FORKY, Suite::Forky)?;

    lay_out(&root.join("containerd-bookworm"), &bookworm[..1])?;
    lay_out(&root.join("containerd-trixie"), &trixie[..1])?;
    lay_out(&root.join("containerd-forky"), &forky[..1])?;
    lay_out(
        &root.join("common"),
        &[&bookworm[1..], &trixie[1..]].concat(),
    )?;
    lay_out(&root.join("with-libraries"), &with_libraries)?;
    let tools = root.join("bin");
    link_tools(&root, &tools)?;

    let mut containerds = Vec::new();
    for suite in CONTAINERD {
        let prefix = root.join(format!("containerd-{}", suite.name()));
        containerds.push(Dist::open(prefix.join("usr/bin"), tools.clone())?);
    }
    if let Some(dir) = std::env::var_os(EXTRA) {
        let dir = std::path::absolute(&dir).with_context(|| format!("{EXTRA}={dir:?}"))?;
        containerds.push(Dist::open(dir, tools.clone()).context(EXTRA)?);
    }
    containerds.sort_by_key(|dist| dist.version);
    Ok(Provisioned { containerds, tools })
}

/// See [`Dist::tools`]; looked for once.
pub(crate) fn tools() -> Result<&'static Path> {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    if let Some(tools) = TOOLS.get() {
        return Ok(tools);
    }
    let provisioned = provision()?;
    Ok(TOOLS.get_or_init(|| provisioned.tools))
}

/// Unpacks the packages to `prefix`, once for every set of their versions.
pub(crate) fn lay_out(prefix: &Path, debs: &[PathBuf]) -> Result<()> {
    let stamp = prefix.join(".packages");
    // Their names have the versions; where they lie depends on the path of the target directory.
    let names = debs.iter().filter_map(|deb| deb.file_name());
    let want: String = names.map(|name| format!("{}\n", name.display())).collect();
    if fs::read_to_string(&stamp).is_ok_and(|have| have == want) {
        return Ok(());
    }
    if prefix.exists() {
        fs::remove_dir_all(prefix).with_context(|| format!("remove {prefix:?}"))?;
    }
    for deb in debs {
        unpack(deb, prefix)?;
    }
    fs::write(&stamp, want).with_context(|| format!("write {stamp:?}"))
}

/// One folder for PATH: links, and wrappers where a newer libc is needed.
fn link_tools(root: &Path, bin: &Path) -> Result<()> {
    fs::create_dir_all(bin).with_context(|| format!("create {bin:?}"))?;
    for program in [
        "common/usr/sbin/runc",
        "common/usr/bin/containerd-nydus-grpc",
        "common/usr/bin/nydus-overlayfs",
        "common/bin/busybox",
        "common/usr/bin/docker-registry",
        "common/usr/bin/promtool",
        "common/usr/bin/umoci",
        "containerd-trixie/usr/bin/containerd-shim-runc-v2",
    ] {
        let from = root.join(program);
        let to = bin.join(from.file_name().context(program)?);
        if !from.is_file() {
            bail!("the packages have no {program}: {from:?} is missing");
        }
        // A target directory that was copied has links to where it was.
        if fs::read_link(&to).ok().as_deref() != Some(&from) {
            if to.symlink_metadata().is_ok() {
                fs::remove_file(&to).with_context(|| format!("remove {to:?}"))?;
            }
            symlink(&from, &to).with_context(|| format!("link {to:?} to {from:?}"))?;
        }
    }
    let prefix = root.join("with-libraries");
    let lib = libraries(&prefix);
    let loader = loader(&lib)?;
    let (loader, lib) = (loader.display(), lib.display());
    for program in [
        "usr/bin/mkfs.erofs",
        "usr/bin/fsck.erofs",
        "usr/bin/dump.erofs",
        "usr/sbin/veritysetup",
        "usr/bin/openssl",
    ] {
        let program = prefix.join(program);
        let name = program.file_name().context("a program has no name")?;
        let program = program.display();
        let script =
            format!("#!/bin/sh\nexec '{loader}' --library-path '{lib}' '{program}' \"$@\"\n");
        write_program(&bin.join(name), &script)?;
    }
    Ok(())
}

/// Returns the folder of libraries of packages that are unpacked to `prefix`.
pub(crate) fn libraries(prefix: &Path) -> PathBuf {
    prefix.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// Returns the libc's program loader, whose name differs by architecture.
pub(crate) fn loader(lib: &Path) -> Result<PathBuf> {
    fs::read_dir(lib)
        .with_context(|| format!("list {lib:?}"))?
        .flatten()
        .find(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"ld-linux")
        })
        .map(|entry| entry.path())
        .with_context(|| format!("{lib:?} has no ld-linux*"))
}

/// Writes an executable script.
pub(crate) fn write_program(path: &Path, script: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|have| have == script) {
        // Left alone: it may be running, and then cannot be written.
        return Ok(());
    }
    fs::write(path, script)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read_as_the_packages_write_them() {
        for (text, version) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1",
                (1, 6, 20),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+ds1 x",
                (2, 1, 9),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.4.0-beta.0-5-gabc 1",
                (2, 4, 0),
            ),
        ] {
            assert_eq!(parse_version(text), Some(version), "{text}");
        }
        assert_eq!(parse_version("containerd"), None);
    }
}
