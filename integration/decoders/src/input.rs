// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The inputs, made of files of the machine and compressed by `gzip`.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use tar::{Builder, Header};

use crate::model;

/// A compressed input.
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    /// Bytes before compression.
    pub(crate) size: u64,
    compressed: u64,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (size, compressed) = (megabytes(self.size), megabytes(self.compressed));
        write!(
            f,
            "{}: {size:.1} MB, of which gzip -6 makes {compressed:.1} MB",
            self.name
        )
    }
}

/// Files of one kind.
struct Files<'a> {
    is_of_kind: fn(&[u8]) -> bool,
    /// Larger ones are left out.
    largest: u64,
    /// Directories, each with the bytes up to which the input is filled with its files.
    roots: &'a [(&'a Path, u64)],
}

/// Makes all inputs in a directory.
pub(crate) fn make(directory: &Path) -> Result<Vec<Input>> {
    let sysroot = sysroot()?;
    let registry = registry()?;
    let binaries = Files {
        is_of_kind: |bytes| bytes.starts_with(b"\x7fELF"),
        largest: u64::MAX,
        // Of several origins, so that no compiler and no language is all of it.
        roots: &[
            (&sysroot, 200_000_000),
            (Path::new("/usr/lib"), 300_000_000),
        ],
    };
    let text = Files {
        is_of_kind: |bytes| !bytes.contains(&0) && str::from_utf8(bytes).is_ok(),
        // Larger ones are mostly tables that programs wrote.
        largest: 64 * 1024,
        roots: &[
            (&registry, 100_000_000),
            (Path::new("/usr/share/doc"), 100_000_000),
            (Path::new("/usr/lib/python3"), 100_000_000),
        ],
    };
    Ok(vec![
        compress(directory, "binaries", |out| binaries.write(out))?,
        compress(directory, "text", |out| text.write(out))?,
        compress(directory, "model", |out| Ok(model::write(out)?))?,
    ])
}

/// Returns the directory of the Rust toolchain.
fn sysroot() -> Result<PathBuf> {
    let mut command = Command::new("rustc");
    let output = command.args(["--print", "sysroot"]).output()?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// Returns the directory of the sources that cargo has unpacked.
fn registry() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    Ok(home.context("no home directory")?.join("registry/src"))
}

/// Compresses what `write` writes, as a file with one member and a header without optional fields.
fn compress(
    directory: &Path,
    name: &'static str,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Input> {
    let path = directory.join(format!("{name}.gz"));
    let mut gzip = Command::new("gzip")
        .args(["-6", "-n", "-c"])
        .stdin(Stdio::piped())
        .stdout(File::create(&path)?)
        .spawn()
        .context("start gzip")?;
    let mut out = Counted {
        out: BufWriter::new(gzip.stdin.take().context("gzip has no input")?),
        size: 0,
    };
    write(&mut out).with_context(|| format!("write {name}"))?;
    out.flush()?;
    let size = out.size;
    drop(out);
    let status = gzip.wait()?;
    if !status.success() {
        bail!("gzip: {status}");
    }
    let compressed = fs::metadata(&path)?.len();
    Ok(Input {
        name,
        path,
        size,
        compressed,
    })
}

/// A writer that knows how much was written.
struct Counted<W> {
    out: W,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Files<'_> {
    /// Writes the files as a tar. Those that do not fit any more are left out, so that all are whole.
    fn write(&self, out: &mut dyn Write) -> Result<()> {
        let mut tar = Builder::new(out);
        let mut total = 0;
        for (root, limit) in self.roots {
            let mut paths = Vec::new();
            list(root, &mut paths);
            for path in paths {
                let length = fs::metadata(&path).map_or(u64::MAX, |metadata| metadata.len());
                if length > self.largest || length > limit - total {
                    continue;
                }
                // One that cannot be read is not needed.
                let Ok(bytes) = fs::read(&path) else {
                    continue;
                };
                if !(self.is_of_kind)(&bytes) {
                    continue;
                }
                let mut header = Header::new_gnu();
                header.set_mode(0o644);
                header.set_size(bytes.len() as u64);
                let name = path.strip_prefix("/").unwrap_or(&path);
                tar.append_data(&mut header, name, &bytes[..])?;
                total += length;
            }
        }
        if total == 0 {
            bail!("no such files on this machine");
        }
        Ok(tar.finish()?)
    }
}

/// Appends the regular files of a directory that can be listed, sorted.
fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match fs::symlink_metadata(&path).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_dir() => list(&path, files),
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
}
