// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees for layers that are committed already. The layers may be mounted meanwhile: nothing of an image is
//! changed, and mounts that exist go on as they are.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use resnap_core::{Descriptor, Proof, ProofOrigin};
use resnap_erofs::ErofsReader;
use resnap_verity::{BlockSize, Sidecar, Work, verify};
use rustix::fs::{self, Mode, OFlags};

use super::inode::{Thawed, has_fs_verity, open, open_image};
use super::own_tree::{is_image, own_tree};
use super::sidecar::{proof, read_sidecar, remove_if_there, write_sidecar};
use super::tree::{append, tree_block};
use crate::copy::copy_file;
use crate::erofs::NAME;
use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// The name of a copy of an image that is being written.
const UNFINISHED_IMAGE: &str = "layer.erofs.resnap";

/// Gives the image in the directory of a committed snapshot a tree and a sidecar. An image that has both
/// keeps them, if they are right.
pub(crate) fn seal(snapshot: &OwnedFd, layer: &Descriptor, guard: &Guard) -> Result<Proof, Error> {
    let image = open_image(snapshot)?;
    if let Some(sidecar) = read_sidecar(snapshot)? {
        let check = || Ok(guard.step()?);
        let (offset, root) = (sidecar.hash_offset, sidecar.root_hash);
        verify(&image, offset, &root, .., Work::new(&check))?;
        return Ok(proof(&sidecar, ProofOrigin::Generated));
    }
    if let Some(sidecar) = own_tree(&image, layer, guard)? {
        write_sidecar(snapshot, &sidecar, None)?;
        return Ok(proof(&sidecar, ProofOrigin::Layer));
    }
    if has_fs_verity(&image).context("look at the image")? {
        return Err(Error::Unproven(
            "its image has fs-verity, and a file with that can get no tree".to_owned(),
        ));
    }
    let (size, block) = covered(&image, layer)?;
    let thawed = image.try_clone().and_then(Thawed::new);
    let thawed = thawed.context("make the image writable (its flag immutable)")?;
    let links = image.metadata().context("look at the image")?.nlink();
    let sidecar = match links {
        1 => {
            let image = open(snapshot, NAME, OFlags::RDWR).context("open the image to write")?;
            append(&image, (size, block), None, &layer.digest, guard)?
        }
        // The file also has other names, such as that of a blob.
        _ => append_to_copy(snapshot, &image, (size, block), layer, guard)?,
    };
    write_sidecar(snapshot, &sidecar, None)?;
    let frozen = thawed.freeze(snapshot, NAME);
    frozen.context("make the image immutable again")?;
    Ok(proof(&sidecar, ProofOrigin::Generated))
}

/// Replaces an image by a copy with a tree.
fn append_to_copy(
    snapshot: &OwnedFd,
    image: &File,
    (size, block): (u64, BlockSize),
    layer: &Descriptor,
    guard: &Guard,
) -> Result<Sidecar, Error> {
    remove_if_there(snapshot, UNFINISHED_IMAGE).context("remove an unfinished copy")?;
    let written = write_copy(snapshot, image, (size, block), layer, guard).and_then(|sidecar| {
        let renamed = fs::renameat(snapshot, UNFINISHED_IMAGE, snapshot, NAME);
        renamed.context("replace the image by its copy")?;
        Ok(sidecar)
    });
    if written.is_err() {
        // The error that is returned is the reason for both.
        let _ = remove_if_there(snapshot, UNFINISHED_IMAGE);
    }
    written
}

fn write_copy(
    snapshot: &OwnedFd,
    image: &File,
    (size, block): (u64, BlockSize),
    layer: &Descriptor,
    guard: &Guard,
) -> Result<Sidecar, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = fs::openat(
        snapshot,
        UNFINISHED_IMAGE,
        flags,
        Mode::from_raw_mode(0o644),
    );
    let copy: File = copy.context("create a copy of the image")?.into();
    copy_file(image, &copy, size, "copy the image", guard)?;
    append(&copy, (size, block), None, &layer.digest, guard)
}

/// Returns the bytes of an image that its tree covers, and the size of their blocks: all that the image has,
/// or all of the file if the layer is one, or if the image has its data in other devices, as the index of a tar
/// in the same file has.
fn covered(image: &File, layer: &Descriptor) -> Result<(u64, BlockSize), Error> {
    let length = image.metadata().context("look at the image")?.len();
    let opened = image.try_clone().context("open the image")?;
    match ErofsReader::open(opened) {
        Ok(image) if length < image.size() => {
            let size = image.size();
            Err(Error::ShortImage {
                found: length,
                size,
            })
        }
        Ok(image) => {
            let is_whole = image.devices() == 0 && !is_image(layer);
            let size = if is_whole { image.size() } else { length };
            Ok((size, tree_block(&image)))
        }
        Err(error) => Err(Error::NotAnImage(error)),
    }
}
