// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `mkfs.erofs`, by which containerd makes the layers of erofs that resnap does not write.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::doctor::process::print;

/// The program as containerd finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mkfs {
    pub(crate) path: PathBuf,
    /// The version, such as 1.8.6, or the reason why it is not known.
    pub(crate) version: Result<(u32, u32, u32), String>,
}

impl Mkfs {
    /// Finds the program in these directories, separated by colons.
    pub(crate) async fn find(path: &str) -> Option<Self> {
        let paths = path.split(':').map(|dir| Path::new(dir).join("mkfs.erofs"));
        let path = paths.into_iter().find(|path| path.is_file())?;
        let version = match print(Command::new(&path).arg("-V")).await {
            Ok(text) => parse(&text).ok_or_else(|| format!("it is not understood: {text:?}")),
            Err(error) => Err(error.to_string()),
        };
        Some(Self { path, version })
    }

    /// Returns what is wrong with the images that it makes, if anything is known.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        match self.version {
            Ok(version) if version < (1, 8, 0) => Some(
                "it writes damaged images of some layers and does not say so: files cannot be read then",
            ),
            Ok(version) if version <= (1, 8, 10) => {
                Some("it crashes at some layers, whose images cannot be pulled then")
            }
            Ok((1, 9, 3)) => Some("it makes faulty images of some layers"),
            _ => None,
        }
    }
}

/// Parses `mkfs.erofs (erofs-utils) 1.8.6`, the first line of more.
fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let word = text.lines().next()?.split_whitespace().next_back()?;
    let mut numbers = word.split(['.', '-']).map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((
        major,
        minor,
        numbers.next().and_then(Result::ok).unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faulty_versions_are_known() {
        for (text, version, is_faulty) in [
            ("mkfs.erofs 1.7.1\n", (1, 7, 1), true),
            (
                "mkfs.erofs (erofs-utils) 1.8.6\navailable: lz4\n",
                (1, 8, 6),
                true,
            ),
            ("mkfs.erofs (erofs-utils) 1.8.10", (1, 8, 10), true),
            ("mkfs.erofs (erofs-utils) 1.9", (1, 9, 0), false),
            ("mkfs.erofs (erofs-utils) 1.9.2-g1234", (1, 9, 2), false),
            ("mkfs.erofs (erofs-utils) 1.9.3", (1, 9, 3), true),
            ("mkfs.erofs (erofs-utils) 1.9.4", (1, 9, 4), false),
        ] {
            assert_eq!(parse(text), Some(version), "{text}");
            let mkfs = Mkfs {
                path: PathBuf::new(),
                version: Ok(version),
            };
            assert_eq!(mkfs.fault().is_some(), is_faulty, "{text}");
        }
        assert_eq!(parse("usage: mkfs.erofs"), None);
    }
}
