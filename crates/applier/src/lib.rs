// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image layers written to snapshots in this process, several at once on any containerd.
//!
//! [`Applier`] is an applier before another one, containerd's differ: it writes what it knows how to
//! and leaves all else to the other.
//!
//! ```text
//! blob -> read -> decompress -+-> SHA-256: the diff ID
//!                             +-> entries -> a directory, or an EROFS image -> its place
//! ```
//!
//! | snapshotter | what is written | lower layers are |
//! |---|---|---|
//! | overlayfs | the upper directory: whiteouts as devices 0:0, `trusted.overlay.opaque` | the mount's `lowerdir` |
//! | erofs | `layer.erofs`, beside `.erofslayer` | `layer.erofs` of the parents, by the mounts |
//! | native | the snapshot's directory, a full copy of its parent | in it |
//!
//! # Ahead of their turn
//!
//! A layer stands on the one before, and containerd commits them in order. What takes the time needs
//! no parent: so layers of a [`Batch`](resnap_core::Batch) are written side by side, in
//! `<snapshotter's root>/.resnap/<unique>/`, from when the first of them is applied on. When its turn
//! comes, a layer is moved to its snapshot by a rename, after directories that it does not state got
//! the metadata they have in the layers below. If a trial rename fails, as between file systems, and
//! for `native`, each layer is written in its snapshot when its turn comes.
//!
//! The directory of a batch is locked (`flock`) while its process lives. A batch removes it in the
//! end, and at its beginning those that no process holds, as [`clear`] does.
//!
//! # What is left to the other
//!
//! Layers of other media types than OCI's and Docker's, plain, gzip or zstd, and than native EROFS;
//! mounts of other forms; snapshots that are not below the snapshotter's root as this process sees
//! it, were not made just now or belong to another user, so that it is the same containerd; those in
//! which this process may not do all that it takes; parents whose EROFS images it cannot read; all of
//! a snapshotter that has layers with dm-verity. How containerd's own EROFS differ is configured
//! cannot be seen from outside: who wants its `mkfs_options`, `enable_tar_index` or `enable_dmverity`
//! chooses [`Differ::Containerd`].
//!
//! # What a directory becomes
//!
//! As [`resnap_erofs`] tells of images, with these differences: in a user namespace devices are left
//! out and attributes are `user.overlay.*`; an attribute that the file system does not take is left
//! out; in a full copy a symbolic link of a lower layer is followed, as containerd's own differ does
//! there, and a directory in the place of what took the place of one of a lower layer is refused.
//!
//! What containerd's differ does otherwise with `overlayfs` stands in one table, each row of which is
//! held against a containerd: `integration/tests/live/differential/table.rs`. With
//! [`Differ::Containerd`] the tree is containerd's.
//!
//! # Hostile layers
//!
//! Every name is created below a descriptor of its directory, reached without following any symbolic
//! link (`openat2`, or component by component); links of the layer are followed by their text, inside
//! the root. Metadata are set by descriptor. So no entry leaves the directory, whatever links and
//! entries of the same name come before it. Decompressed bytes, names and entries are limited
//! ([`Settings::max_layer_bytes`], [`resnap_layer::Limits`]).
//!
//! Data is not kept. Until a layer is in its place, what it says of its directories is in memory, with
//! their extended attributes, and for `native` the paths of all that it has: at most 512 MiB a layer,
//! what the collections themselves take included. A layer that needs more is refused. An EROFS image
//! has limits of its own ([`resnap_erofs::Limits`]). An entry takes time by the way to it and by
//! what it replaces, whatever else is there; a directory that is not stated, by the layers
//! below.

mod applier;
mod batch;
mod build;
mod erofs;
mod error;
mod extract;
mod guard;
mod lower;
mod memory;
mod pipeline;
mod progress;
mod remove;
mod source;
mod staging;
mod target;

pub use applier::{Applier, Differ, MEMORY, STALL, Settings};
pub use staging::clear;
