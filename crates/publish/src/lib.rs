// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! EROFS images and dm-verity artifacts of container images, made once for many nodes.
//!
//! | made | of | for |
//! |---|---|---|
//! | [files](convert_to_files) | each layer, or all of them | micro-VMs, and whoever mounts an image |
//! | [native layers](convert_to_native) | each layer | containerd 2.3 and later, which unpacks nothing then |
//! | [artifacts](build_artifacts), [signed](sign_artifacts) and [pushed](push_artifacts) | each layer | nodes with `integrity = "signed"` |
//! | [a cache](build_cache) | each layer | containerd 2.4, `layer_content_caches` |
//!
//! An image is read from where it is ([`SourceImage`]): its layers are not stored but decompressed, verified against
//! their diff IDs, and written as images by `resnap-applier`, as those of a snapshot are. What is made is published to a
//! [`Destination`](resnap_core::Destination), or moved to its place when it is complete. It depends on nothing but
//! the image and the form that is asked for: no time, path, user, umask or number of cores is in it.
//!
//! Temporary files are in a directory `.resnap-scratch-*` beside the result, or for a destination in `TMPDIR`. It is
//! removed when the work ends, and one that a killed process left is removed by the next.
//!
//! # Hostile images
//!
//! The layers of an image may contain anything; the limits are those of `resnap-applier` and `resnap-erofs`.
//! Documents are read as by `resnap-handler-wrapper`.

mod artifact;
mod blob_file;
mod cache;
mod cache_dir;
mod content;
mod copy;
mod fault;
mod files;
mod image;
mod layer_format;
mod layers;
mod native;
mod parents;
mod scratch;
mod sidecar;
mod signing;
mod tree;

pub use artifact::{Unsigned, UnsignedArtifacts, UnsignedLayer, build_artifacts};
pub use cache::{CacheOutcome, CachedLayer, build_cache};
pub use cache_dir::{CacheDir, CacheEntry};
pub use files::{ConvertedFile, ConvertedFiles, FileForm, FileTree, convert_to_files};
pub use image::SourceImage;
pub use layer_format::{LayerFormat, UnknownFormat};
pub use layers::Progress;
pub use native::{NativeForm, NativeImage, NativeManifest, convert_to_native};
pub use scratch::Scratch;
pub use signing::{RootHashSigner, SignedArtifact, push_artifacts, sign_artifacts};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
