// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A source of missing blobs on disk: OCI layouts, OCI archives and `docker save` archives.
//!
//! Manifests that refer to an image are found by what they say themselves, in all indexes of a layout.
//!
//! The images themselves can be listed, too ([`ArchiveSource::images`]). Those of `docker save` have no manifest; one
//! is made of their config and layers.
//!
//! An archive is indexed once, and again when its size or time of modification has changed. Compressed
//! archives are not read: a blob in them has no place of its own.

mod images;
mod index;
mod layout;
mod referrers;
mod source;

pub use images::{ArchiveForm, ArchivedImage};
pub use source::ArchiveSource;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
