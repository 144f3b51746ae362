// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees for layers that are committed already. The layers may be mounted meanwhile: nothing of an image is
//! changed, and mounts that exist go on as they are.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use resnap_core::erofs_layer::is_image;
use resnap_core::{Descriptor, Proof, ProofOrigin, SignedRoot};
use resnap_erofs::ErofsReader;
use resnap_verity::{BlockSize, SIDECAR_FILE, Sidecar, Work, verify};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::inode::{Thawed, has_fs_verity, open, open_image};
use super::kernel::require_no_device;
use super::own_tree::own_tree;
use super::sidecar::{StagedSidecar, proof, read_sidecar, remove_if_there, write_sidecar};
use super::tree::{append, tree_block};
use crate::copy::copy_file;
use crate::erofs::NAME;
use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// The name of an image that is being written.
const UNFINISHED_IMAGE: &str = "layer.erofs.resnap";

/// Gives the image in the directory of a committed snapshot a tree and a sidecar, and the signature of its root
/// hash, if there is one. An image that has both keeps them, if they are right.
pub(crate) fn seal(
    snapshot: &OwnedFd,
    layer: &Descriptor,
    signed: Option<&SignedRoot>,
    guard: &Guard,
) -> Result<Proof, Error> {
    let signature = signed.map(|signed| &signed.signature[..]);
    let finish = |sidecar: &Sidecar, origin| {
        let proof = proof(sidecar, origin, signed)?;
        write_sidecar(snapshot, sidecar, signature)?;
        Ok(proof)
    };
    let image = open_image(snapshot)?;
    if let Some(sidecar) = read_sidecar(snapshot)? {
        let check = || Ok(guard.step()?);
        let (offset, root) = (sidecar.hash_offset, sidecar.root_hash);
        verify(&image, offset, &root, .., Work::new(&check))?;
        return match signed {
            Some(_) => finish(&sidecar, ProofOrigin::Generated),
            None => proof(&sidecar, ProofOrigin::Generated, None),
        };
    }
    if let Some(sidecar) = own_tree(&image, layer, guard)? {
        return finish(&sidecar, ProofOrigin::Layer);
    }
    if has_fs_verity(&image).context("look at the image")? {
        return Err(Error::Unproven(
            "its image has fs-verity, and a file with that can get no tree".to_owned(),
        ));
    }
    let covered = covered(&image, layer)?;
    let thawed = image.try_clone().and_then(Thawed::new);
    let thawed = thawed.context("make the image writable (its flag immutable)")?;
    let links = image.metadata().context("look at the image")?.nlink();
    let sidecar = match (links, covered.is_all_of_file) {
        (1, false) => {
            let image = open(snapshot, NAME, OFlags::RDWR).context("open the image to write")?;
            append(&image, covered.blocks, None, &layer.digest, guard)?
        }
        // The file also has other names, such as that of a blob; or nothing but its length tells where a tree
        // begins that was not finished.
        _ => with_unfinished_image(snapshot, |copy| {
            copy_file(&image, copy, covered.blocks.0, "copy the image", guard)?;
            let sidecar = append(copy, covered.blocks, None, &layer.digest, guard)?;
            proof(&sidecar, ProofOrigin::Generated, signed)?;
            guard.step()?;
            let renamed = fs::renameat(snapshot, UNFINISHED_IMAGE, snapshot, NAME);
            renamed.context("replace the image by its copy")?;
            Ok(sidecar)
        })?,
    };
    let proof = finish(&sidecar, ProofOrigin::Generated)?;
    let frozen = thawed.freeze(snapshot, NAME);
    frozen.context("make the image immutable again")?;
    Ok(proof)
}

/// Returns the proof of the image in the directory of a committed snapshot, if its sidecar has the signed root
/// hash, and its tree is right.
pub(crate) fn signed_tree(
    snapshot: &OwnedFd,
    signed: &SignedRoot,
    guard: &Guard,
) -> Result<Option<Proof>, Error> {
    let sidecar = read_sidecar(snapshot)?;
    let is_signed = |sidecar: &Sidecar| sidecar.root_hash.to_string() == signed.root_hash;
    let Some(sidecar) = sidecar.filter(is_signed) else {
        return Ok(None);
    };
    let check = || Ok(guard.step()?);
    let image = open_image(snapshot)?;
    let (offset, root) = (sidecar.hash_offset, sidecar.root_hash);
    verify(&image, offset, &root, .., Work::new(&check))?;
    write_sidecar(snapshot, &sidecar, Some(&signed.signature))?;
    proof(&sidecar, ProofOrigin::Artifact, Some(signed)).map(Some)
}

/// Replaces the image in the directory of a committed snapshot by the one that has the signed root hash. `write`
/// writes it to an empty file and returns its size, and `check` compares the old one with it.
pub(crate) fn replace(
    snapshot: &OwnedFd,
    layer: &Descriptor,
    signed: &SignedRoot,
    (write, check): (
        impl FnOnce(&File) -> Result<u64, Error>,
        impl FnOnce(File, File) -> Result<(), Error>,
    ),
    guard: &Guard,
) -> Result<Proof, Error> {
    let old = open_image(snapshot)?;
    if has_fs_verity(&old).context("look at the image")? {
        return Err(Error::Unproven(
            "its image has fs-verity, which would be lost".to_owned(),
        ));
    }
    require_no_device(snapshot)?;
    with_unfinished_image(snapshot, |new| {
        let size = write(new)?;
        let covered = (size, BlockSize::B512);
        let sidecar = append(new, covered, None, &layer.digest, guard)?;
        let proof = proof(&sidecar, ProofOrigin::Artifact, Some(signed))?;
        let copied = old.try_clone().and_then(|old| Ok((old, new.try_clone()?)));
        let (compared, with) = copied.context("open the images")?;
        check(compared, with)?;
        let staged = StagedSidecar::write(snapshot, &sidecar, Some(&signed.signature))?;
        // Nothing is done from here on that is abandoned, or needs space.
        guard.step()?;
        let thawed = Thawed::new(old).context("make the image writable (its flag immutable)")?;
        // The image that takes the place of the old one is not that of this sidecar.
        let removed = remove_if_there(snapshot, SIDECAR_FILE);
        removed.context("remove the sidecar of the old image")?;
        let renamed = fs::renameat(snapshot, UNFINISHED_IMAGE, snapshot, NAME);
        renamed.context("replace the image")?;
        let frozen = thawed.freeze(snapshot, NAME);
        frozen.context("make the image immutable again")?;
        staged.place()?;
        Ok(proof)
    })
}

/// Takes the exclusive right to write to the directory of a snapshot. It ends when the directory is closed: a
/// thread that was given up keeps it until it ends.
pub(crate) fn lock(snapshot: &OwnedFd) -> Result<(), Error> {
    match fs::flock(snapshot, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Error::Unproven(
            "another process or thread is giving it one; try again later".to_owned(),
        )),
        locked => locked.context("lock the snapshot"),
    }
}

/// Creates an image, and removes it if the work fails that moves it to its place.
fn with_unfinished_image<T>(
    snapshot: &OwnedFd,
    work: impl FnOnce(&File) -> Result<T, Error>,
) -> Result<T, Error> {
    remove_if_there(snapshot, UNFINISHED_IMAGE).context("remove an unfinished image")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let created = fs::openat(snapshot, UNFINISHED_IMAGE, flags, mode);
    let file: File = created.context("create an image")?.into();
    let done = work(&file);
    if done.is_err() {
        // The error that is returned is the reason for both.
        let _ = remove_if_there(snapshot, UNFINISHED_IMAGE);
    }
    done
}

/// The part of an image that its tree covers.
struct Covered {
    /// Its bytes, and the size of the tree's blocks.
    blocks: (u64, BlockSize),
    /// Whether it is all of the file, as the image does not tell its size.
    is_all_of_file: bool,
}

/// Returns the part of an image that its tree covers: all that the image has, or all of the file if the layer is
/// one, or if the image has its data in other devices, as the index of a tar in the same file has.
fn covered(image: &File, layer: &Descriptor) -> Result<Covered, Error> {
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
            let is_all_of_file = image.devices() > 0 || is_image(layer);
            let size = if is_all_of_file { length } else { image.size() };
            Ok(Covered {
                blocks: (size, tree_block(&image)),
                is_all_of_file,
            })
        }
        Err(error) => Err(Error::NotAnImage(error)),
    }
}
