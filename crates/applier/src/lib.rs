// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image layers written to snapshots in this process, several at once on any containerd.
//!
//! [`InProcessApplier`] is an applier before another one, containerd's differ: it writes what it knows how to
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
//! mounts of other forms; zstd frames whose window is more than a layer may have in memory; snapshots that are not below the snapshotter's root as this process sees
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
//! ([`ApplierSettings::max_layer_bytes`], [`resnap_layer::Limits`]).
//!
//! Data is not kept. Until a layer is in its place, what it says of its directories is in memory, with
//! their extended attributes, and for `native` the paths of all that it has; of an EROFS image, its
//! whole tree. All layers of the process share one budget for that, and for the windows of zstd
//! ([`ApplierSettings::memory`]): a layer for which there is no more before its turn is given up and written
//! when its turn comes, and one that alone needs more than ten sixteenths is refused. Attributes that
//! are never set are not kept, and those that several directories have are kept once.
//!
//! # Time
//!
//! Whatever is done as often as an image says has a bound that no honest image meets. One entry is
//! 512 bytes of a stream, which may be compressed to two. Work ends where nobody wants it any more,
//! which is asked for each entry and directory, and where it does not get on ([`ApplierSettings::stall`]).
//!
//! | for each | bound | the worst costs |
//! |---|---|---|
//! | byte of a blob, compressed or not | [`ApplierSettings::max_layer_bytes`] | a member or frame of gzip or zstd of some 20 bytes: a new decoder |
//! | entry | 4 million ([`resnap_layer::Limits`]) | making a file |
//! | byte of extension headers, attribute, hole | 1 MiB, 256 KiB, 2^18 an entry | a copy of it |
//! | name on the way to an entry | 8192 an entry; 64 an entry of the layer and 2^20 ([`resnap_layer::way`]) | opening a directory |
//! | symbolic link on the way | 255 an entry | the names of its target, which count |
//! | directory that is made for an entry | the names on its way | making a directory |
//! | file that is replaced, with all in it | those that the layer has made, or its parent has | removing a file |
//! | name in a directory that is made opaque (`native`) | each directory once a layer | removing a file |
//! | directory that the layer does not state, in a layer below | 512 an entry of the layer and 2^22 | on `overlayfs` opening it by its path; of an EROFS image a search in its directory, and all attributes of one |
//! | attribute at an inode of an EROFS image | 256 KiB of them | a read |
//! | file of a snapshot that containerd's differ writes | 10^6, once in a twentieth of the time | `stat` |
//!
//! `links_that_only_take_time_are_refused_soon` measures the ways, those of images
//! `an_entry_costs_no_more_names_than_are_left`, `depth_costs_what_opening_costs` the layers below, and
//! `siblings_cost_replacing_nothing` and `a_copy_is_looked_through_once` what is removed.

mod applier;
mod batch;
mod build;
mod erofs;
mod error;
mod extract;
mod guard;
mod job;
mod lower;
mod memory;
mod pipeline;
mod progress;
mod remove;
mod source;
mod staging;
mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod watch;

pub use applier::{ApplierSettings, Differ, InProcessApplier, MEMORY, STALL};
pub use staging::clear;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
