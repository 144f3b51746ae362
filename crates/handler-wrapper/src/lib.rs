// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Walks the graph of an image, and annotates its layers for remote snapshotters.
//!
//! An image is an index of manifests, or a manifest; a manifest names a config and layers. A
//! [`Handler`] returns the children of a descriptor; [`Children`] reads them from a content store.
//! A [`Wrapper`] puts a handler around another one: [`append_info`] annotates every layer with the
//! image's reference, the manifest's digest, its own digest and those of the layers above it, as
//! containerd's CRI plugin does for a pull. Additional labels are added by additional wrappers.
//!
//! [`choose_manifest`] chooses the manifest of a platform, and [`rootfs`] reads a manifest's
//! config. All JSON is bounded, checked against its digest, and parsed as tolerantly as containerd
//! does. The crate does no I/O except through [`resnap_core::ContentReader`].

mod annotate;
mod choice;
mod document;
mod handler;

pub use annotate::append_info;
pub use choice::{Choice, ChoiceChildren, ChoiceError, choose_manifest, listed_platforms};
pub use document::{
    Config, MAX_DOCUMENT_BYTES, MAX_LAYERS, MissingDocument, NotAnImage, layer_urls, rootfs,
};
pub use handler::{Children, Handler, Wrapper};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
