// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees that layers bring behind their images.

use std::fs::File;

use resnap_core::Descriptor;
use resnap_core::erofs_layer::{self, is_image};
use resnap_verity::{RootHash, Sidecar, Work, verify};

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// Returns the sidecar of the tree that a layer brings behind its image, after it was verified; `None` if it
/// brings none.
pub(crate) fn own_tree(
    image: &File,
    layer: &Descriptor,
    guard: &Guard,
) -> Result<Option<Sidecar>, Error> {
    if !is_image(layer) {
        return Ok(None);
    }
    let malformed = |why: String| Error::Unproven(format!("the layer's own dm-verity tree: {why}"));
    let Some(tree) = erofs_layer::own_tree(layer).map_err(malformed)? else {
        return Ok(None);
    };
    let root = tree.root_hash.parse::<RootHash>();
    let root = root.map_err(|error| malformed(error.to_string()))?;
    let check = || Ok(guard.step()?);
    verify(image, tree.hash_offset, &root, .., Work::new(&check))?;
    image.sync_all().context("flush the image")?;
    Ok(Some(Sidecar::new(root, tree.hash_offset)))
}
