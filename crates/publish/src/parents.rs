// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Directories that a layer does not state, whose metadata is that of the layers below.

use std::fs::File;
use std::sync::Arc;

use resnap_erofs::{ErofsReader, ImageError, Node, Stack};
use resnap_layer::Metadata;

/// The limit on nested directories, as a path has at most 4096 bytes.
const MAX_DEPTH: usize = 2048;

/// The beginning of the names of overlayfs' attributes.
const OVERLAY: &[u8] = b"trusted.overlay.";

type Image = ErofsReader<Arc<File>>;

/// Returns a directory whose metadata in `image`, which was written without the layers `below` (the topmost first),
/// may be other than on them. A directory that a layer does not state has the default there: mode 0755, owner
/// root, no attributes, 1970. Times are not compared: containerd takes those of unpacking.
pub(crate) fn needed_directory(
    image: &Image,
    below: &[Image],
) -> Result<Option<String>, ImageError> {
    if below.is_empty() {
        return Ok(None);
    }
    let mut walk = Walk {
        image,
        below: below
            .iter()
            .map(|image| Stack::new(vec![image.clone()]))
            .collect(),
        path: Vec::new(),
    };
    walk.directory(&image.root()?, 0)
}

struct Walk<'a> {
    image: &'a Image,
    below: Vec<Stack<Arc<File>>>,
    path: Vec<u8>,
}

impl Walk<'_> {
    fn directory(&mut self, node: &Node, depth: usize) -> Result<Option<String>, ImageError> {
        if depth == MAX_DEPTH || self.is_needed(node)? {
            let path = String::from_utf8_lossy(&self.path).into_owned();
            return Ok(Some(format!("/{path}")));
        }
        for named in self.image.entries(node) {
            let named = named?;
            let child = self.image.node(named.id)?;
            if !child.is_directory() {
                continue;
            }
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&named.name);
            let found = self.directory(&child, depth + 1)?;
            self.path.truncate(length);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn is_needed(&mut self, node: &Node) -> Result<bool, ImageError> {
        let own = self.image.metadata(node)?;
        if !is_default(&own) || own.mtime.seconds != 0 {
            return Ok(false);
        }
        for stack in &mut self.below {
            // A default there is of a directory that is not stated there either, or does not differ.
            if let Some(metadata) = stack.directory(&self.path)?
                && !is_default(&metadata)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_default(metadata: &Metadata) -> bool {
    let Metadata {
        mode,
        uid,
        gid,
        xattrs,
        ..
    } = metadata;
    // What overlayfs keeps in them is of the layer itself.
    let mut own = xattrs
        .iter()
        .filter(|xattr| !xattr.name.starts_with(OVERLAY));
    (*mode, *uid, *gid) == (0o755, 0, 0) && own.next().is_none()
}
