// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! dm-verity trees behind images.

use std::fs::File;
use std::path::Path;

use resnap_applier::tree_uuid;
use resnap_core::{Digest, Error, Kind, Result};
use resnap_verity::{Appended, BlockSize, Work, append};

use crate::fault::{IoContext as _, Stop};

/// A tree behind the data of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree {
    /// The size of the data in bytes.
    pub(crate) data: u64,
    pub(crate) block: BlockSize,
    pub(crate) appended: Appended,
}

/// Writes the tree of a file's first `size` bytes behind them, after zeros up to a multiple of `multiple` bytes.
/// Other bytes there are replaced.
pub(crate) fn append_tree(
    path: &Path,
    (size, multiple): (u64, u64),
    block: BlockSize,
    of: &Digest,
    stop: &Stop,
) -> Result<Tree> {
    const WRITE: &str = "write the hash tree of";
    let file = File::options().read(true).write(true).open(path);
    let file = file.during(WRITE, path)?;
    let data = size.next_multiple_of(multiple);
    // What is behind the data must become zeros.
    for length in [size, data] {
        file.set_len(length).during(WRITE, path)?;
    }
    let check = || Ok(stop.check()?);
    let appended = append(&file, data, block, tree_uuid(of), None, Work::new(&check));
    let appended = appended.map_err(|error| {
        Error::new(Kind::Unknown, WRITE, path.display().to_string()).with_source(error)
    })?;
    Ok(Tree {
        data,
        block,
        appended,
    })
}
