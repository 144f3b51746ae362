// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The writing of one layer, to staging or to its snapshot.

use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::{
    Applied, Descriptor, Digest, ErofsMode, Proof, ProofOrigin, SignedRoot, TarIndex,
};
use resnap_erofs::Writer;
use resnap_layer::{Layer, Limits};
use resnap_verity::{BlockSize, Sidecar};
use rustix::fs::{CWD, Mode, open, renameat, syncfs};

use crate::beneath::DIRECTORY;
use crate::create::create;
use crate::erofs::{self, ImageForm, Parents};
use crate::error::{Error, IoContext as _};
use crate::extract::Extraction;
use crate::guard::Guard;
use crate::layer_source::LayerSource;
use crate::link::{ImageBlob, Links, applied};
use crate::lower::LowerDirs;
use crate::pipeline::{Work, run};
use crate::proof::{self, HashedFile};
use crate::remove::remove;
use crate::sibling::CopiedLayer;
use crate::source::Source;
use crate::tar_file::TarFile;
use crate::target::{LayerForm, Target};
use crate::xattr::XattrNamespace;

/// A layer whose data is written.
pub(crate) struct Built {
    pub(crate) applied: Applied,
    path: PathBuf,
    rest: Rest,
}

/// The content of a layer.
pub(crate) enum LayerContent {
    Blob(Source),
    /// The blob, and the index of it.
    Indexed(Source, Source, Box<TarIndex>),
    /// The blob, which is the image.
    Image(Box<ImageBlob>, Arc<Links>),
    /// The snapshot that it is copied from.
    Copy(Box<CopiedLayer>),
}

/// The part of the work that needs the layers below.
enum Rest {
    Tree(Box<Extraction>),
    /// An image, or an index and its tar.
    Image(Box<Writer<HashedFile>>, Option<TarFile>, Guard),
    /// An image that was copied, its size, and the size of its tree's blocks.
    Blob((u64, BlockSize), Guard),
    /// An index and the tar, and the size of both.
    Indexed((File, u64), Guard),
}

/// An image that is complete.
struct Image {
    file: HashedFile,
    size: u64,
    block: BlockSize,
    guard: Guard,
}

impl Image {
    /// Returns an image of whole blocks.
    fn new(file: HashedFile, size: u64, guard: Guard) -> Self {
        Self {
            file,
            size,
            block: BlockSize::B4096,
            guard,
        }
    }

    /// Writes the tree of the image, unless the layer brings one.
    fn with_tree(
        self,
        layer: &Descriptor,
        signed: Option<&SignedRoot>,
    ) -> Result<(Sidecar, Proof), Error> {
        let Self {
            file,
            size,
            block,
            guard,
        } = self;
        let (file, leaves) = file.into_parts();
        let (sidecar, origin) = match proof::own_tree(&file, layer, &guard)? {
            Some(sidecar) => (sidecar, ProofOrigin::Layer),
            None => {
                let (leaves, blob) = (leaves.as_ref(), &layer.digest);
                let sidecar = proof::append(&file, (size, block), leaves, blob, &guard)?;
                let has_index = signed.is_some_and(|signed| signed.index.is_some());
                match has_index {
                    true => (sidecar, ProofOrigin::Artifact),
                    false => (sidecar, ProofOrigin::Generated),
                }
            }
        };
        let proof = proof::proof(&sidecar, origin, signed)?;
        Ok((sidecar, proof))
    }
}

/// The place where a layer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Staging: a failure leaves nothing in the snapshot.
    Staging,
    /// The snapshot.
    Snapshot,
}

/// Removes a staged layer, or an image.
fn discard(path: &Path) {
    let removed = match (path.parent().map(File::open), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => remove(&parent.into(), name.as_bytes(), &|| Ok(())),
        (Some(Err(error)), _) => Err(error),
        _ => Ok(()),
    };
    if let Err(error) = removed {
        tracing::warn!(?path, %error, "cannot remove a layer yet");
    }
}

/// Writes the entries of a layer, except for what depends on the layers below.
fn write(
    layer: &mut impl LayerSource,
    form: LayerForm,
    path: &Path,
    tar: Option<TarFile>,
    namespace: XattrNamespace,
    guard: &Guard,
) -> Result<Rest, Error> {
    match form {
        LayerForm::Blob { .. } | LayerForm::Indexed => Err(Error::Unsupported(
            "the entries of an EROFS image are not copied".to_owned(),
        )),
        LayerForm::Image {
            is_lowest,
            has_tree,
            ..
        } => {
            let form = ImageForm {
                is_lowest,
                has_tree,
                is_index: tar.is_some(),
            };
            let writer = erofs::write(path, layer, form, guard)?;
            Ok(Rest::Image(Box::new(writer), tar, guard.clone()))
        }
        LayerForm::Tree(mode) => {
            if !path.exists() {
                let made = DirBuilder::new().mode(0o755).create(path);
                made.context("make the directory to write to")?;
            }
            let mut extraction = Extraction::new(path, mode, namespace, guard.clone())?;
            extraction.add(layer)?;
            Ok(Rest::Tree(Box::new(extraction)))
        }
    }
}

/// Writes a tar archive, except for what depends on the layers below.
fn write_stream(
    stream: &mut impl Read,
    form: LayerForm,
    path: &Path,
    namespace: XattrNamespace,
    guard: &Guard,
) -> Result<Rest, Error> {
    let LayerForm::Image {
        mode: ErofsMode::TarIndex,
        ..
    } = form
    else {
        let mut layer = Layer::new(stream, Limits::default());
        let rest = write(&mut layer, form, path, None, namespace, guard)?;
        layer.finish()?;
        return Ok(rest);
    };
    let tar = TarFile::new(path)?;
    let mut layer = Layer::new(tar.tee(stream)?, Limits::default());
    let rest = write(&mut layer, form, path, Some(tar), namespace, guard)?;
    layer.finish()?;
    Ok(rest)
}

/// Writes a layer to `path`: an empty directory for a [`LayerForm::Tree`] (which must not exist yet in
/// staging), otherwise a file that does not exist yet.
pub(crate) fn build(
    content: LayerContent,
    work: &Work,
    form: LayerForm,
    path: PathBuf,
    placement: Placement,
    namespace: XattrNamespace,
) -> Result<Built, Error> {
    let result = match content {
        LayerContent::Blob(source) => run(source, work, |stream| {
            if let LayerForm::Blob { .. } = form {
                let covered = erofs::copy(&path, stream, &work.guard)?;
                return Ok(Rest::Blob(covered, work.guard.clone()));
            }
            write_stream(stream, form, &path, namespace, &work.guard)
        }),
        LayerContent::Indexed(blob, bytes, index) => run(blob, work, |stream| {
            let file = create(&path).context("create the EROFS image")?;
            let size = proof::write_indexed(&file, bytes, &index, stream, &work.guard)?;
            Ok(Rest::Indexed((file, size), work.guard.clone()))
        }),
        LayerContent::Image(blob, links) => blob.place(&path, &work.guard).map(|placed| {
            let (covered, is_linked) = placed;
            if is_linked {
                links.add(blob.path.clone());
            }
            work.monitor.read(work.index, covered.0);
            let rest = Rest::Blob(covered, work.guard.clone());
            (rest, applied(&blob.descriptor))
        }),
        LayerContent::Copy(layer) => layer.run(work, |entries| {
            write(entries, form, &path, None, namespace, &work.guard)
        }),
    };
    let (rest, mut applied) = result.map_err(|error| {
        if placement == Placement::Staging || !matches!(form, LayerForm::Tree(_)) {
            discard(&path);
        }
        error.unwrap_stop_reason()
    })?;
    applied.is_own_image = matches!(form, LayerForm::Image { .. });
    Ok(Built {
        applied,
        path,
        rest,
    })
}

impl Built {
    /// Completes the layer, and moves it to its snapshot if it is in staging. `has_tree` is whether it gets a
    /// dm-verity tree, whose root hash must be `signed`, if that is known.
    pub(crate) fn place(
        self,
        target: &Target,
        layer: &Descriptor,
        sync: bool,
        (has_tree, signed): (bool, Option<&SignedRoot>),
        known: &Parents,
    ) -> Result<Applied, Error> {
        let Self {
            mut applied,
            path,
            rest,
        } = self;
        let completed = complete(rest, &path, target, &layer.digest, known);
        let image = completed.map_err(Error::unwrap_stop_reason)?;
        let tree = match image.filter(|_| has_tree) {
            Some(image) => {
                let tree = image
                    .with_tree(layer, signed)
                    .inspect_err(|_| discard(&path));
                Some(tree.map_err(Error::unwrap_stop_reason)?)
            }
            None => None,
        };
        let to = target.path();
        if path != to {
            renameat(CWD, &path, CWD, &to).context("move the layer to its snapshot")?;
        }
        if let Some((sidecar, proof)) = tree {
            let snapshot = open(target.snapshot(), DIRECTORY, Mode::empty());
            let snapshot = snapshot.context("open the snapshot")?;
            let signature = signed.map(|signed| &signed.signature[..]);
            proof::write_sidecar(&snapshot, &sidecar, signature)?;
            applied.proof = Some(proof);
        }
        if sync {
            let snapshot = File::open(target.snapshot()).context("open the snapshot")?;
            syncfs(&snapshot).context("sync the snapshot's file system")?;
        }
        Ok(applied)
    }
}

/// Does the part of the work that needs the layers below. Returns the image, if the layer is one.
fn complete(
    rest: Rest,
    path: &Path,
    target: &Target,
    blob: &Digest,
    known: &Parents,
) -> Result<Option<Image>, Error> {
    match (rest, target) {
        (Rest::Tree(extraction), Target::Upper { lower, .. }) => {
            let lower = LowerDirs::open(lower).context("open the layers below")?;
            extraction.finish(&lower)?;
            Ok(None)
        }
        (Rest::Tree(extraction), Target::Copy { .. }) => {
            extraction.finish(&LowerDirs::default())?;
            Ok(None)
        }
        (Rest::Image(writer, tar, guard), Target::Image { parents, .. }) => {
            let finished = known.open(parents).and_then(|parents| {
                let (file, size) = erofs::finish(*writer, parents, blob, &guard)?;
                let Some(tar) = tar else {
                    return Ok(Image::new(file, size, guard));
                };
                let (file, _) = file.into_parts();
                let size = tar.append_to(&file, size, &guard)?;
                Ok(Image {
                    block: BlockSize::B512,
                    ..Image::new(HashedFile::new(file, false), size, guard)
                })
            });
            finished.map(Some).inspect_err(|_| discard(path))
        }
        (Rest::Indexed((file, size), guard), Target::Image { .. }) => Ok(Some(Image {
            block: BlockSize::B512,
            ..Image::new(HashedFile::new(file, false), size, guard)
        })),
        (Rest::Blob((size, block), guard), Target::Image { .. }) => {
            let file = File::options().read(true).write(true).open(path);
            let file = HashedFile::new(file.context("open the EROFS image")?, false);
            Ok(Some(Image {
                block,
                ..Image::new(file, size, guard)
            }))
        }
        // It was built ahead, for a snapshot like the first one.
        (_, target) => Err(Error::Unsupported(format!(
            "{:?} is of another form than the first layer's snapshot",
            target.snapshot()
        ))),
    }
}
