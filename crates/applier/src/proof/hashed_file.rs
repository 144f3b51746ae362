// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A file whose blocks are hashed as they are written.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use resnap_verity::{BlockSize, Leaves};

/// The most blocks whose digests are kept: those of 512 MiB, in 4 MiB of memory. The others are read again.
const LIMIT: usize = 1 << 17;

/// A new file that is written from front to back, with holes; what is written again is hashed again.
#[derive(Debug)]
pub(crate) struct HashedFile {
    file: File,
    leaves: Option<Leaves>,
    position: u64,
    /// The offset of the next byte that has not been written or skipped yet.
    end: u64,
}

impl HashedFile {
    /// Creates a file. Its blocks are hashed if it is to get a dm-verity tree.
    pub(crate) fn new(file: File, has_tree: bool) -> Self {
        Self {
            file,
            leaves: has_tree.then(|| Leaves::new(BlockSize::B4096, LIMIT)),
            position: 0,
            end: 0,
        }
    }

    /// Returns the file, and the digests of its first blocks.
    pub(crate) fn into_parts(self) -> (File, Option<Leaves>) {
        (self.file, self.leaves)
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let bytes = bytes.get(..written).unwrap_or_default();
        if let Some(leaves) = &mut self.leaves {
            match self.position.checked_sub(self.end) {
                Some(hole) => {
                    leaves.hole(hole);
                    leaves.update(bytes);
                }
                None => leaves.rewrite(self.position, bytes),
            }
        }
        self.position += written as u64;
        self.end = self.end.max(self.position);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for HashedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.file.seek(to)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use resnap_verity::{Work, append};

    use super::*;

    #[test]
    fn a_tree_is_the_same_without_the_digests() {
        let mut written = HashedFile::new(tempfile::tempfile().unwrap(), true);
        written.seek(SeekFrom::Start(4096)).unwrap();
        written.write_all(&[1; 5000]).unwrap();
        written.write_all(&[2; 3192]).unwrap();
        written.seek(SeekFrom::Start(10 * 4096)).unwrap();
        written.write_all(&[3; 8192]).unwrap();
        written.seek(SeekFrom::Start(0)).unwrap();
        written.write_all(&[4; 4096]).unwrap();
        let (file, leaves) = written.into_parts();
        let leaves = leaves.unwrap();
        let check = || Ok(());
        let size = file.metadata().unwrap().len();
        let append = |leaves| {
            let work = Work::new(&check);
            append(&file, size, BlockSize::B4096, [1; 16], leaves, work).unwrap()
        };
        assert_eq!(append(Some(&leaves)), append(None));
    }

    #[test]
    fn files_without_a_tree_are_not_hashed() {
        let mut written = HashedFile::new(tempfile::tempfile().unwrap(), false);
        written.write_all(&[1; 5000]).unwrap();
        assert!(written.into_parts().1.is_none());
    }
}
