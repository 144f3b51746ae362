// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An applier that writes image layers to snapshots in this process, several at once on any containerd.
//!
//! [`InProcessApplier`] wraps another applier, containerd's differ: it writes the layers that it supports
//! and leaves all others to the fallback.
//!
//! ```text
//! blob -> read -> decompress -+-> SHA-256: the diff ID
//!                             +-> entries -> a directory, or an EROFS image -> the snapshot
//! ```
//!
//! | snapshotter | output | lower layers |
//! |---|---|---|
//! | overlayfs | the upper directory: whiteouts as devices 0:0, `trusted.overlay.opaque` | `lowerdir` of the mount |
//! | erofs | `layer.erofs`, next to `.erofslayer` | `layer.erofs` of the parents, by the mounts |
//! | native | the directory of the snapshot, a full copy of its parent | in the directory |
//!
//! # Staging
//!
//! A layer has the previous one as its parent, and containerd commits them in order. Most of the work does
//! not need the parent: so the layers of a [`Batch`](resnap_core::Batch) are written side by side in
//! `<snapshotter's root>/.resnap/<unique>/`, starting when the first of them is applied. When its turn comes,
//! a layer is moved to its snapshot by a rename, after the directories that it does not state have got the
//! metadata they have in the layers below. If a trial rename fails, for example between file systems, and for
//! `native`, each layer is written in its snapshot when its turn comes.
//!
//! The directory of a batch is locked (`flock`) while its process lives. A batch removes its directory when
//! it ends, and when it starts those that no process holds, as [`clear`] does.
//!
//! # Copies
//!
//! A layer whose blob is missing can be copied from a committed chain of `overlayfs`
//! ([`BatchLayer::copy`](resnap_core::BatchLayer)): its directory is read as a tar stream, and written as that of
//! a blob is. The diff ID is not known then. What a directory does not tell of a blob is in a table in
//! `src/sibling.rs`, with what is refused; a chain that was made without its parents is, for example. A copy is
//! never left to the fallback.
//!
//! # Links
//!
//! A layer that is an EROFS image, and not compressed, becomes a link to its blob where nothing is to be written
//! behind it and containerd makes no image immutable, or else a copy by the kernel (`src/link.rs`).
//!
//! # Layers that the backend asks for
//!
//! A batch of one layer may be in a snapshot that any client of the backend has prepared, for containerd's diff
//! service ([`Preparer::Backend`](resnap_core::Preparer)). There is no time before which the snapshot did not exist: it must
//! be empty, and the directory that the backend sees at its path. Where there is a fallback otherwise, such a layer
//! is refused, with nothing written. A layer on `erofs` with a bind mount may be any of an image that is unpacked
//! in parallel, so that its whiteouts stay; so do those of an `overlay` with an upper directory alone.
//!
//! # What is left to the fallback
//!
//! - Layers of media types other than those of OCI and Docker (plain, gzip or zstd) and native EROFS.
//! - Mounts of other forms.
//! - zstd frames whose window is larger than the memory of a layer.
//! - Snapshots that may belong to another containerd: they are not below the snapshotter's root as this
//!   process sees it, are not new, or belong to another user.
//! - Snapshots in which this process lacks a permission that writing a layer needs.
//! - Layers whose parents are EROFS images that this crate cannot read.
//!
//! The configuration of containerd's own EROFS differ is not visible from outside: choose
//! [`Differ::Containerd`] to use its `mkfs_options`, `enable_tar_index` or `enable_dmverity`.
//!
//! # The resulting directory
//!
//! A directory has the content that [`resnap_erofs`] documents for images, with these differences. In a user
//! namespace devices are left out and attributes are `user.overlay.*`. Attributes that the file system does
//! not support are left out. In a full copy a symbolic link of a lower layer is followed, as in containerd's
//! differ, and a directory that replaces a file that replaced a lower directory is refused.
//!
//! All differences from containerd's differ on `overlayfs` are in one table, each row of which is tested
//! against containerd: `integration/tests/live/differential/table.rs`. With [`Differ::Containerd`] the tree
//! is containerd's.
//!
//! # Hostile layers
//!
//! Every name is created below a descriptor of its directory, which is opened without following symbolic
//! links (`openat2`, or component by component). Links of the layer are resolved by this crate, inside the
//! root. Metadata is set by descriptor. So no entry leaves the directory, whatever links and entries of the
//! same name come before it. Decompressed bytes, names and entries are limited
//! ([`ApplierSettings::max_layer_bytes`], [`resnap_layer::Limits`]).
//!
//! File data is not kept in memory. Until a layer is in its snapshot, memory holds the metadata of its
//! directories with their extended attributes, for `native` also all its paths, and for an EROFS image its
//! whole tree. All layers of the process share one budget for that and for the windows of zstd
//! ([`ApplierSettings::memory`]). A layer for which there is no memory before its turn is given up and
//! written when its turn comes; a layer that needs more than ten sixteenths by itself is refused. Attributes
//! that are never set are not stored, and attributes that several directories share are stored once.
//!
//! # Time
//!
//! Each operation that a layer can repeat has a limit that no real image reaches. One entry takes 512 bytes
//! of a stream, which may be compressed to two. Work ends when the batch ends, which is checked for each
//! entry and directory, and when it makes no progress ([`ApplierSettings::stall`]).
//!
//! | operation | limit | worst cost |
//! |---|---|---|
//! | reading a byte of a blob, compressed or not | [`ApplierSettings::max_layer_bytes`] | for every 20 bytes a new decoder, if each is a member or frame of gzip or zstd |
//! | writing an entry | 4 million ([`resnap_layer::Limits`]) | creating a file |
//! | reading a byte of an extension header, an attribute, or a hole | 1 MiB, 256 KiB and 2^18 for each entry | a copy |
//! | looking up a name | 8192 for each entry; 64 for each entry of the layer and 2^20 ([`resnap_layer::resolve`]) | opening a directory |
//! | following a symbolic link | 255 for each entry | looking up the names of its target |
//! | creating the parents of an entry | the components of its path | creating a directory |
//! | replacing a file or a tree | the files that the layer has created, or that its parent has | removing a file |
//! | removing the content of an opaque directory (`native`) | each directory once in a layer | removing a file |
//! | looking up a directory that the layer does not state in a layer below | 512 for each entry of the layer and 2^22 | `overlayfs`: opening it by its path; EROFS: a search in its directory, and reading its attributes |
//! | reading the attributes of an inode of an EROFS image | 256 KiB | a read |
//! | reading a file of a snapshot that is copied | 4 million | opening it, and reading its attributes |
//! | watching a snapshot that containerd's differ writes | 10^6 files, for a twentieth of the time | `stat` |
//!
//! These limits are tested by `links_that_only_take_time_are_refused_soon` for lookups,
//! `an_entry_costs_no_more_names_than_are_left` for lookups of images, `deep_lookups_cost_as_much_as_opening`
//! for the layers below, and `siblings_do_not_slow_down_replacements` and `a_copy_is_listed_once` for
//! removals.

mod applier;
mod batch;
mod beneath;
mod build;
mod context;
mod copy;
mod copy_fault;
mod create;
mod erofs;
mod error;
mod extract;
mod guard;
mod inode;
mod inode_flags;
mod layer_source;
mod link;
mod lower;
mod memory;
mod meter;
mod mountinfo;
mod pace;
mod pipeline;
mod preparation;
mod probe;
mod progress;
mod proof;
mod remove;
mod seal;
mod settings;
mod shared;
mod sibling;
mod source;
mod staging;
mod tar_file;
mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod user_namespace;
mod verify;
mod watch;
mod whiteout;
mod xattr;

pub use applier::InProcessApplier;
pub use memory::MemoryUse;
pub use probe::probe;
pub use proof::tree_uuid;
pub use remove::remove_tree;
pub use settings::{ApplierSettings, Differ, MEMORY, STALL};
pub use staging::{clear, leftovers};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
