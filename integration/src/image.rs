// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images made offline, as OCI layout archives that `ctr images import` takes.
//!
//! [`ImageBuilder`] and [`Index`] make an image of any layers, [`Fault`] makes it a wrong one.
//! The ready-made images are real file trees out of Debian's packages and are kept in the
//! target directory: [`web`], [`edge_cases`], [`edge_cases_mkfs`], [`shared_pair`], [`hello`], [`pause`],
//! [`many`], [`small_files`], [`large_files`], [`large_layer`], [`million_files`], and [`forms`], of
//! which some are EROFS images. What is meant to harm is in [`hostile`].
//! [`crowd`] is as many small images as one likes. [`Artifact`] is what a publisher attaches to an image.
//!
//! ```no_run
//! # use resnap_integration::image::{Entry, ImageBuilder, Layer};
//! # fn main() -> anyhow::Result<()> {
//! let layer = Layer::of(&[Entry::dir("etc"), Entry::file("etc/motd", "hello\n")])?;
//! let built = ImageBuilder::new("docker.io/library/small:1")
//!     .layer(layer)
//!     .cmd(["/bin/true"])
//!     .write("small.tar".as_ref())?;
//! assert_eq!(built.layers.len(), 1);
//! # Ok(())
//! # }
//! ```

mod archive;
mod artifact;
mod blobs;
mod builder;
mod built;
mod bulk;
mod catalog;
mod crowd;
mod edge_cases;
pub mod hostile;
mod layer;
mod native;
mod noise;
mod payload;
pub mod tar_entry;

pub use artifact::{Artifact, ArtifactNames, LayerPayloads};
pub use builder::{Fault, ImageBuilder, Index, Part, host_platform};
pub use built::{Built, BuiltLayer, BuiltManifest};
pub use bulk::{SMALL_FILES, large_files, large_layer, million_files, small_files};
pub use catalog::{
    HELLO_SAYS, MANY_MAX, ROOT_CLOCK, WEB_SAYS, beside_hello, hello, many, pause, shared_pair, web,
};
pub use crowd::{CROWD_LAYERS, crowd};
pub use edge_cases::{
    Case, EDGE_CASES, EDGE_CASES_CLOCK, EDGE_CASES_MKFS, EDGE_CASES_SAYS, REFUSED, edge_cases,
    edge_cases_mkfs,
};
pub use layer::{Compression, Format, Layer, digest};
pub use native::{Form, foreign_architecture, forms};
pub use noise::noise;
pub use tar_entry::Entry;
