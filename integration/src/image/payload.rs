// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files of Debian packages as the entries of one layer, with `/usr` merged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use anyhow::{Context, Result};

use super::layer::Layer;
use super::tar_entry::{self, Entry};
use crate::debian::{self, Suite};

/// Directories that Debian's packages still ship at the root, and that an installed system has
/// as symbolic links into `/usr`.
pub(super) const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The entries of a layer in the making: directories first, each once.
#[derive(Debug, Default)]
pub(super) struct Payload {
    dirs: BTreeMap<Vec<u8>, Entry>,
    rest: Vec<Entry>,
    seen: BTreeSet<Vec<u8>>,
}

impl Payload {
    /// Returns the files of these packages of bookworm; of two files of one name the first stays.
    pub(super) fn debian(names: &[&str]) -> Result<Self> {
        let mut payload = Self::default();
        for deb in debian::debs(names, Suite::Bookworm)? {
            payload
                .read(&debian::tar(&deb)?)
                .with_context(|| format!("cannot read the files of {}", deb.display()))?;
        }
        Ok(payload)
    }

    /// Adds entries of our own; one of a name that is there already is left out.
    pub(super) fn with(mut self, entries: impl IntoIterator<Item = Entry>) -> Self {
        entries.into_iter().for_each(|entry| self.add(entry));
        self
    }

    /// Returns the gzip layer of all entries.
    pub(super) fn layer(&self) -> Result<Layer> {
        Layer::of(self.dirs.values().chain(&self.rest))
    }

    /// Returns the tar of all entries.
    pub(super) fn tar(&self) -> io::Result<Vec<u8>> {
        tar_entry::pack(self.dirs.values().chain(&self.rest))
    }

    fn read(&mut self, tar: &[u8]) -> Result<()> {
        for member in tar::Archive::new(tar).entries()? {
            let mut member = member?;
            let header = member.header();
            let typeflag = header.entry_type().as_byte();
            let mut entry = Entry::new(typeflag, merged(&member.path_bytes()))
                .mode(header.mode()? & 0o7777)
                .owner(header.uid()?, header.gid()?)
                .mtime(header.mtime()?.cast_signed());
            if let Some(target) = member.link_name_bytes() {
                // A hard link names a member; what a symbolic link says is not ours to change.
                entry.link = match typeflag {
                    b'1' => merged(&target),
                    _ => target.into_owned(),
                };
            }
            member.read_to_end(&mut entry.data)?;
            self.add(entry);
        }
        Ok(())
    }

    fn add(&mut self, entry: Entry) {
        // `/usr/bin/x -> /bin/x` of a package from before the merge would point to itself.
        let itself = entry.typeflag == b'2' && merged(&entry.link) == entry.path;
        if entry.path.is_empty() || itself || !self.seen.insert(entry.path.clone()) {
            return;
        }
        match entry.typeflag {
            b'5' => _ = self.dirs.insert(entry.path.clone(), entry),
            _ => self.rest.push(entry),
        }
    }
}

/// Returns the path without `./` or `/` before it and `/` behind it, and below `usr` if it is merged.
fn merged(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b".").unwrap_or(path);
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    match MERGED.iter().any(|dir| dir.as_bytes() == first) {
        true => [b"usr/", path].concat(),
        false => path.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_move_below_usr() {
        let cases: [(&str, &str); 6] = [
            ("./", ""),
            ("./bin/", "usr/bin"),
            ("./bin/sh", "usr/bin/sh"),
            ("./usr/bin/perl", "usr/bin/perl"),
            ("/lib64/ld.so", "usr/lib64/ld.so"),
            ("./.hidden", ".hidden"),
        ];
        for (path, expected) in cases {
            assert_eq!(
                String::from_utf8(merged(path.as_bytes())).unwrap(),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn a_link_to_itself_and_a_second_entry_are_left_out() {
        let payload = Payload::default().with([
            Entry::symlink("usr/bin/touch", "/bin/touch"),
            Entry::file("etc/a", "first"),
            Entry::file("etc/a", "second"),
            Entry::dir("etc"),
        ]);
        assert_eq!(payload.dirs.len(), 1);
        assert_eq!(payload.rest.len(), 1);
        assert_eq!(payload.rest[0].data, b"first");
    }
}
