// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Directory blocks: entries of 12 bytes (node ID, offset of the name in the block, type), then the
//! names, without NULs between them. The names of a block end where the next begins, the last one
//! with the block or with a NUL. All names are ordered by their bytes, `.` and `..` too.

use crate::format::Get;

/// Bytes of an entry without its name.
pub(crate) const ENTRY: usize = 12;

/// Returns how many names of these lengths fit in `space` bytes, and how many bytes they take.
pub(crate) fn fit(lengths: impl Iterator<Item = usize>, space: u64) -> (usize, usize) {
    let mut used = 0;
    let mut count = 0;
    for length in lengths {
        if (used + ENTRY + length) as u64 > space {
            break;
        }
        used += ENTRY + length;
        count += 1;
    }
    (count, used)
}

/// Appends a block of these entries (node ID, type, name) to `block`, without padding.
pub(crate) fn encode<'a>(
    entries: impl Iterator<Item = (u64, u8, &'a [u8])> + Clone,
    block: &mut Vec<u8>,
) {
    let mut offset = ENTRY * entries.clone().count();
    for (node, kind, name) in entries.clone() {
        block.extend(node.to_le_bytes());
        block.extend(u16::try_from(offset).unwrap_or(0).to_le_bytes());
        block.extend([kind, 0]);
        offset += name.len();
    }
    for (_, _, name) in entries {
        block.extend(name);
    }
}

/// A decoded entry: node ID, type, name.
pub(crate) type Raw<'a> = (u64, u8, &'a [u8]);

/// Returns the number of entries of a block, or `None` if it is malformed.
pub(crate) fn count(block: &[u8]) -> Option<usize> {
    let names = usize::from(Get(block).u16(8));
    (names >= ENTRY && names.is_multiple_of(ENTRY) && names <= block.len()).then_some(names / ENTRY)
}

/// Returns the entry at `index` of `count`, or `None` if it is malformed.
pub(crate) fn decode(block: &[u8], index: usize, count: usize) -> Option<Raw<'_>> {
    let entry = Get(block.get(index * ENTRY..(index + 1) * ENTRY)?);
    let start = usize::from(entry.u16(8));
    let end = match index + 1 < count {
        true => usize::from(Get(block.get((index + 1) * ENTRY..)?).u16(8)),
        false => block.len(),
    };
    let mut name = block.get(start..end)?;
    if index + 1 == count {
        let length = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        name = name.get(..length)?;
    }
    if start < count * ENTRY
        || name.is_empty()
        || name.len() > 255
        || name.contains(&b'/')
        || name.contains(&0)
    {
        return None;
    }
    Some((entry.u64(0), entry.u8(10), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_encoded_and_decoded() {
        let entries = [(2, 2, &b"."[..]), (2, 2, b".."), (70_000, 1, b"file")];
        let mut block = Vec::new();
        encode(entries.iter().copied(), &mut block);
        assert_eq!(block.len(), 3 * 12 + 7);
        assert_eq!(
            fit(entries.iter().map(|(_, _, name)| name.len()), 4096),
            (3, block.len())
        );
        for padding in [0, 100] {
            block.resize(block.len() + padding, 0);
            let count = count(&block).unwrap();
            let read: Vec<_> = (0..count)
                .map(|index| decode(&block, index, count).unwrap())
                .collect();
            assert_eq!(read, entries);
        }
    }

    #[test]
    fn blocks_are_filled() {
        let (count, used) = fit(std::iter::repeat_n(255, 100), 4096);
        assert_eq!((count, used), (15, 15 * 267));
        assert_eq!(fit(std::iter::repeat_n(255, 100), 512), (1, 267));
        assert_eq!(fit(std::iter::empty(), 512), (0, 0));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        assert_eq!(count(b""), None);
        assert_eq!(count(&[0; 64]), None);
        let mut block = Vec::new();
        encode([(1, 1, &b"a/b"[..]), (1, 1, b"")].into_iter(), &mut block);
        assert_eq!(decode(&block, 0, 2), None);
        assert_eq!(decode(&block, 1, 2), None);
        assert_eq!(decode(&block, 2, 3), None);
    }
}
