// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Walking the graph of an image, and the wrapper that tells a remote snapshotter what its layers
//! are.
//!
//! An image is an index of manifests, or a manifest; a manifest names a config and layers. A
//! [`Handler`] answers with a descriptor's children, [`Children`] being the one that reads them
//! from a content store. A [`Wrapper`] puts a handler around another: [`append_info`] annotates
//! every layer with the image's reference, the manifest's digest, its own digest and those of the
//! layers above it, just as containerd's CRI plugin does for a pull. Whoever needs more labels
//! writes a wrapper of their own.
//!
//! [`choose_manifest`] picks the manifest of a platform, and [`rootfs`] reads a manifest's config.
//! All JSON is read bounded and checked against its digest, and as tolerantly as containerd does.
//! The crate does no I/O but through [`resnap_core::ContentReader`].

mod annotate;
mod choice;
mod document;
mod handler;

pub use annotate::append_info;
pub use choice::{Choice, ChoiceChildren, ChoiceError, choose_manifest, listed_platforms};
pub use document::{Config, MAX_DOCUMENT_BYTES, MAX_LAYERS, NotAnImage, layer_urls, rootfs};
pub use handler::{Children, Handler, Wrapper};
