// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A source of missing blobs on disk: OCI layouts, OCI archives and `docker save` archives.
//!
//! Manifests that refer to an image are found by what they say themselves, in all indexes of a layout.
//!
//! An archive is indexed once, and again when its size or time of modification has changed. Compressed
//! archives are not read: a blob in them has no place of its own.

mod index;
mod layout;
mod referrers;
mod source;

pub use source::ArchiveSource;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
