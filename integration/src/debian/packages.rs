// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Debian's packages, downloaded and unpacked.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

use super::apt;
use super::command::run;
use super::dirs::{lock, target_dir};
use super::suite::Suite;

/// Returns the package's `.deb`, downloaded when it is not there yet.
pub fn deb(name: &str, suite: Suite) -> Result<PathBuf> {
    debs(&[name], suite)?
        .pop()
        .with_context(|| format!("{name} of {} was not downloaded", suite.name()))
}

/// Returns the packages' `.deb`s in the order of `names`; those not there yet are
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

/// Unpacks the package's files below `prefix`; its scripts are not run.
pub fn unpack(deb: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(prefix).with_context(|| format!("create {prefix:?}"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(prefix))
}

/// Returns the package's files as a tar stream, as `dpkg-deb --fsys-tarfile` writes it.
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
