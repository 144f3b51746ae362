// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A tar writer that writes what it is told.
//!
//! Libraries refuse or repair what real layers hold (names that are not UTF-8, an old type
//! flag, two entries of one name), and a test image needs exactly those. An [`Entry`] is one
//! member with all its header fields; [`pack`] makes the archive. Nothing is taken from the
//! clock or the file system, so equal entries are equal bytes.

use std::io::{self, Write};

/// The modification time of every entry that sets none: 2024-01-01 00:00:00 UTC.
pub const EPOCH: i64 = 1_704_067_200;

/// A tar block: headers are one, contents are padded to a multiple.
const BLOCK: usize = 512;

/// One member of a tar archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name as it stands in the archive.
    pub path: Vec<u8>,
    /// The type flag: `0` file, `1` hard link, `2` symbolic link, `3` char, `4` block, `5`
    /// directory, `6` fifo, NUL an old file.
    pub typeflag: u8,
    /// The target of a hard or a symbolic link.
    pub link: Vec<u8>,
    /// The content of a file.
    pub data: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    device: (u32, u32),
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    prefix: Vec<u8>,
    gnu_names: bool,
}

impl Entry {
    /// Returns an entry of any type, mode 0644, root's, of [`EPOCH`].
    pub fn new(typeflag: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            typeflag,
            link: Vec::new(),
            data: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: EPOCH,
            device: (0, 0),
            pax: Vec::new(),
            prefix: Vec::new(),
            gnu_names: false,
        }
    }

    /// Returns a directory of mode 0755.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', path).mode(0o755)
    }

    /// Returns a regular file of mode 0644.
    pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let mut entry = Self::new(b'0', path);
        entry.data = data.as_ref().to_vec();
        entry
    }

    /// Returns a symbolic link.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', path).mode(0o777).link(target)
    }

    /// Returns a hard link to an earlier entry.
    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', path).link(target)
    }

    /// Returns a character device.
    pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(b'3', path).device(major, minor)
    }

    /// Returns a block device.
    pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(b'4', path).device(major, minor)
    }

    /// Returns a named pipe.
    pub fn fifo(path: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', path)
    }

    /// Returns the whiteout that deletes `path` of the layers below: `dir/.wh.name`.
    pub fn whiteout(path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let name = path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        Self::file([&path[..name], b".wh.", &path[name..]].concat(), "")
    }

    /// Returns the marker that hides all that lower layers hold in the directory `path`.
    pub fn opaque(path: impl AsRef<[u8]>) -> Self {
        Self::file([path.as_ref(), b"/.wh..wh..opq"].concat(), "")
    }

    /// Sets the permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the owner; what does not fit in octal is written in base 256.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.uid = uid;
        self.gid = gid;
        self
    }

    /// Sets the modification time in whole seconds; a negative one is written in base 256.
    pub fn mtime(mut self, seconds: i64) -> Self {
        self.mtime = seconds;
        self
    }

    /// Returns the permission bits.
    pub fn permissions(&self) -> u32 {
        self.mode
    }

    /// Returns the modification time in whole seconds, as a PAX record may say.
    pub fn seconds(&self) -> i64 {
        let stated = self.pax.iter().rfind(|(key, _)| key == b"mtime");
        let stated = stated.and_then(|(_, value)| {
            let whole = value.split(|byte| *byte == b'.').next()?;
            str::from_utf8(whole).ok()?.parse().ok()
        });
        stated.unwrap_or(self.mtime)
    }

    /// Sets the device number.
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    /// Adds a PAX record before the entry, such as `mtime` with a fraction.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Adds an extended attribute, as a PAX record.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// Writes long names the GNU way instead of as PAX records.
    pub fn gnu_names(mut self) -> Self {
        self.gnu_names = true;
        self
    }

    /// Puts `prefix` and a slash before the name, in the field that POSIX has for it.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }

    /// Sets the target of a link.
    fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    /// Writes the entry with what must come before it.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut pax = self.pax.clone();
        for (long, key, flag) in [(&self.path, "path", b'L'), (&self.link, "linkpath", b'K')] {
            if long.len() <= 100 {
                continue;
            }
            if self.gnu_names {
                let mut name = Self::new(flag, "././@LongLink");
                name.data = [long, &b"\0"[..]].concat();
                name.write_member(out)?;
            } else {
                pax.push((key.into(), long.clone()));
            }
        }
        if !pax.is_empty() {
            let mut records = Self::new(b'x', "PaxHeaders/entry");
            records.data = pax
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            records.write_member(out)?;
        }
        self.write_member(out)
    }

    /// Returns the header and the padded content.
    fn write_member(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header())?;
        out.write_all(&self.data)?;
        let padding = self.data.len().next_multiple_of(BLOCK) - self.data.len();
        out.write_all(&[0; BLOCK][..padding])
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        text(&mut header[..100], &self.path);
        number(&mut header[100..108], i64::from(self.mode));
        number(&mut header[108..116], self.uid.cast_signed());
        number(&mut header[116..124], self.gid.cast_signed());
        number(&mut header[124..136], self.data.len() as i64);
        number(&mut header[136..148], self.mtime);
        header[156] = self.typeflag;
        text(&mut header[157..257], &self.link);
        let magic: &[u8; 8] = if self.gnu_names {
            b"ustar  \0"
        } else {
            b"ustar\x0000"
        };
        header[257..265].copy_from_slice(magic);
        number(&mut header[329..337], i64::from(self.device.0));
        number(&mut header[337..345], i64::from(self.device.1));
        if !self.gnu_names {
            text(&mut header[345..500], &self.prefix);
        }
        // The sum is over the header with spaces where the sum goes.
        header[148..156].fill(b' ');
        let sum: i64 = header.iter().map(|byte| i64::from(*byte)).sum();
        number(&mut header[148..155], sum);
        header
    }
}

/// Returns the archive of `entries`, with its two zero blocks.
pub fn pack<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out)?;
    }
    end(&mut out)?;
    Ok(out)
}

/// Writes the two zero blocks that end an archive.
pub fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// Copies as much of `value` as fits.
fn text(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Octal with a closing NUL where it fits, base 256 where it does not.
fn number(field: &mut [u8], value: i64) {
    let width = field.len() - 1;
    let octal = format!("{value:0width$o}");
    if value >= 0 && octal.len() == width {
        field[..width].copy_from_slice(octal.as_bytes());
        return;
    }
    for (index, byte) in field.iter_mut().rev().enumerate() {
        *byte = (value >> (8 * index).min(63)) as u8;
    }
    field[0] |= 0x80;
}

/// One PAX record: its own length in decimal, a space, `key=value` and a newline.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_crate_reads_the_entries() {
        let long = "d/".repeat(80) + "file";
        let entries = [
            Entry::dir("d/").mode(0o700).owner(1000, 3_000_000_000),
            Entry::file(&long, "pax").xattr("user.a", b"\0\n="),
            Entry::file(&long, "gnu").gnu_names(),
            Entry::symlink("s", "d"),
            Entry::whiteout("d/gone"),
            Entry::opaque("d"),
        ];
        let bytes = pack(&entries).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let read: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                (path, entry.header().gid().unwrap(), entry.size())
            })
            .collect();
        let expected = [
            ("d/", 3_000_000_000, 0),
            (&long, 0, 3),
            (&long, 0, 3),
            ("s", 0, 0),
            ("d/.wh.gone", 0, 0),
            ("d/.wh..wh..opq", 0, 0),
        ];
        assert_eq!(
            read,
            expected.map(|(path, gid, size)| (path.to_owned(), gid, size))
        );
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for size in [0, 1, 5, 6, 90, 91, 92, 93, 94, 990, 991, 992, 993] {
            let bytes = record(b"k", &vec![b'v'; size]);
            let (length, _) = bytes.split_at(bytes.iter().position(|byte| *byte == b' ').unwrap());
            assert_eq!(String::from_utf8_lossy(length), bytes.len().to_string());
        }
    }
}
