// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A source of missing blobs on disk: OCI layouts, OCI archives and `docker save` archives; and layouts as a
//! destination of what is published ([`LayoutDestination`]).
//!
//! Manifests that refer to an image are found by what they say themselves, in all indexes of a layout.
//!
//! The images themselves can be listed, too ([`ArchiveSource::images`]). Those of `docker save` have no manifest; one
//! is made of their config and layers.
//!
//! A place whose bytes of a blob turned out to be wrong is asked last for it.
//!
//! An archive is indexed once, and again when its size or time of modification has changed. Compressed
//! archives are not read: a blob in them has no place of its own.
//!
//! # Writing
//! Several processes may write to a layout at once. `oci-layout` is locked (`flock`) while one changes `index.json`,
//! and other fields and entries of that stay as they are. Blobs are written to `blobs/.resnap-NUMBER`, which is
//! locked while its writer lives, and renamed once they are complete and on disk. What a killed process leaves is
//! removed when the layout is opened again. A manifest without a tag that refers to none has no entry: its digest
//! leads to it.
//!
//! A blob that is there is read and hashed before it counts as there. Links in a layout are not followed, and files of
//! other types are not opened.

mod destination;
mod directory;
mod images;
mod index;
mod layout;
mod layout_files;
mod referrers;
mod rejections;
mod source;
mod tag;

pub use destination::LayoutDestination;
pub use images::{ArchiveForm, ArchivedImage};
pub use source::ArchiveSource;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
