// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules of overlayfs for a name that several images have.

use resnap_layer::Xattr;

use crate::error::Fault;
use crate::image::Node;
use crate::reader::ErofsReader;
use crate::source::{ImageError, ReadAt};

/// The attribute of a directory that hides lower ones, with its value.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

const OWN: &[u8] = b"trusted.overlay.";

/// Attributes of overlayfs that do not change what is shown.
const HARMLESS: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"upper", b"uuid"];

/// A result, or an error of the image with an index.
pub(crate) type Indexed<T> = Result<T, (usize, ImageError)>;

/// Returns what is shown of the nodes that images have at a name, the topmost first: nothing, something that is
/// not a directory, or the directories that are merged. Nodes come with the indices of their images.
pub(crate) fn visible<R: ReadAt>(
    images: &[ErofsReader<R>],
    nodes: impl Iterator<Item = Indexed<(usize, Node)>>,
) -> Indexed<Vec<(usize, Node)>> {
    let mut shown = Vec::new();
    for node in nodes {
        let (index, node) = node?;
        // A whiteout or a file hides the lower directories.
        if !node.is_directory() {
            if shown.is_empty() && !node.is_whiteout() {
                shown.push((index, node));
            }
            break;
        }
        shown.push((index, node));
        // overlayfs ignores the attribute on roots.
        let image = images.get(index);
        let is_opaque = image.map(|image| image.has_xattr(&node, OPAQUE.0, OPAQUE.1));
        if is_opaque.transpose().map_err(|error| (index, error))? == Some(true) {
            break;
        }
    }
    Ok(shown)
}

/// Checks that no attribute changes what is shown in a way that [`visible`] does not know, such as
/// `trusted.overlay.redirect`.
pub(crate) fn check(xattrs: &[Xattr]) -> Result<(), Fault> {
    let is_known = |xattr: &&Xattr| match xattr.name.strip_prefix(OWN) {
        None => true,
        Some(own) => HARMLESS.contains(&own) || (&xattr.name[..], &xattr.value[..]) == OPAQUE,
    };
    match xattrs.iter().find(|xattr| !is_known(xattr)) {
        None => Ok(()),
        Some(xattr) => Err(Fault::Overlay(xattr.name.clone())),
    }
}
