// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Real programs and real file trees out of Debian's packages, none installed.
//!
//! A package is downloaded once to `<target>/integration/debs/<suite>/` and
//! unpacked into a private prefix. apt reaches the newer suites through the
//! mirror that it already uses, with lists and a cache of its own below
//! `<target>/integration/apt/`; the system's lists, cache and libraries are
//! never written.

mod apt;
mod tools;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

pub(crate) use tools::tools;
pub(crate) use tools::write_program;
pub use tools::{Dist, Provisioned, provision};

/// A release of Debian that packages are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
    /// What becomes Debian 14; it moves, so versions are read, never assumed.
    Forky,
}

impl Suite {
    const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Forky];

    /// The name in a sources file and of the folder below `debs/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// Where everything of the suite is kept: `integration/` in cargo's target
/// directory.
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let dir = workspace.join(target).join("integration");
    // Removes the `..`, so that the paths in logs and mount tables compare.
    normal(&dir)
}

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// The package's `.deb`, downloaded when it is not there yet.
pub fn deb(name: &str, suite: Suite) -> Result<PathBuf> {
    debs(&[name], suite)?
        .pop()
        .with_context(|| format!("{name} of {} was not downloaded", suite.name()))
}

/// The packages' `.deb`s in the order of `names`; those not there yet are
/// downloaded by one run of apt.
pub fn debs(names: &[&str], suite: Suite) -> Result<Vec<PathBuf>> {
    let dir = target_dir().join("debs").join(suite.name());
    let _lock = lock(&dir)?;
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| cached(&dir, name).is_none())
        .collect();
    if !missing.is_empty() {
        apt::download(&missing, suite, &dir)?;
    }
    names
        .iter()
        .map(|name| {
            cached(&dir, name)
                .with_context(|| format!("apt downloaded no {name} of {} to {dir:?}", suite.name()))
        })
        .collect()
}

fn cached(dir: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}_");
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let file = entry.file_name();
        let file = file.to_str()?;
        (file.starts_with(&prefix) && file.ends_with(".deb")).then(|| entry.path())
    })
}

/// Held until dropped; keeps two processes from filling one folder at once.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
    let path = dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("create {path:?}"))?;
    file.lock().with_context(|| format!("lock {path:?}"))?;
    Ok(file)
}

/// Unpacks the package's files below `prefix`; its scripts are not run.
pub fn unpack(deb: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(prefix).with_context(|| format!("create {prefix:?}"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(prefix))
}

/// The package's files as a tar stream, as `dpkg-deb --fsys-tarfile` writes it.
pub fn tar(deb: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = tar_reader(deb)?;
    reader
        .read_to_end(&mut bytes)
        .with_context(|| format!("read the files of {deb:?}"))?;
    Ok(bytes)
}

/// Like [`tar()`] for packages that are better not held in memory.
///
/// A failure of `dpkg-deb` is an error of the read that would be the last.
pub fn tar_reader(deb: &Path) -> Result<TarReader> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb (package dpkg)")?;
    let stdout = child.stdout.take().context("dpkg-deb has no stdout")?;
    Ok(TarReader { child, stdout })
}

/// The running `dpkg-deb` behind [`tar_reader`].
#[derive(Debug)]
pub struct TarReader {
    child: Child,
    stdout: ChildStdout,
}

impl Read for TarReader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stdout.read(buf)?;
        if read == 0 && !buf.is_empty() {
            let status = self.child.wait()?;
            if !status.success() {
                return Err(std::io::Error::other(format!("dpkg-deb: {status}")));
            }
        }
        Ok(read)
    }
}

impl Drop for TarReader {
    fn drop(&mut self) {
        // Not read to its end: without this it stays as a zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command and fails with what it wrote to stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Like `run`, with what the command wrote to stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!(
            "{command:?}: {}: {}{}",
            out.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}
