// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ports of [`resnap_core`] over a directory: the engine without a daemon.
//!
//! # The directory
//!
//! ```text
//! oci-layout, index.json, blobs/    an OCI layout; the named entries of the index are the images
//! ingest/                           blobs that are being written
//! erofs/snapshots/N/layer.erofs     layers as EROFS images
//! overlayfs/snapshots/N/fs/         layers as directories
//! state.db                          labels of blobs, leases, snapshots
//! run/                              the locks of engines
//! ```
//!
//! It belongs to one user, and to one namespace ([`Local::NAMESPACE`]). Snapshots have the files and mounts of
//! containerd's snapshotters of the same names. EROFS images need no privileges: owners, devices and attributes
//! are data in them. Directories need them, and are refused to others.
//!
//! # Processes
//!
//! Any number of processes of one machine may use a store at once, on a local file system. Records are rows of an
//! SQLite database; files are created, renamed and unlinked while the writing transaction is held, and a file counts
//! only by its record or its name:
//!
//! | killed between | left behind | removed by |
//! |---|---|---|
//! | the directory of a snapshot and its row | a directory without a row | the next collection |
//! | the row of a removed snapshot and its directory | the same | the same |
//! | a layer that was written ahead and its snapshot | files in `.resnap` | whoever opens the store |
//! | a blob's labels and its file | a complete ingest under its lease | the next writer, or the lease's end |
//!
//! The content of a layer is on the disk before its commit is, so that a loss of power leaves whole layers or none.
//!
//! # Damage
//!
//! A blob whose bytes turn out to be those of another digest while they are read is removed, and a committed snapshot
//! whose files are gone counts as missing, as do those above: an engine then fetches and makes them again. Nothing is
//! read to find damage.
//!
//! # Garbage
//!
//! The rules are containerd's. Garbage is collected whenever a lease is deleted, and by
//! [`Leases::collect_garbage`](resnap_core::Leases::collect_garbage). A container's root file system is an active
//! snapshot by any key that is not [that of an extraction](resnap_core::SnapshotKey::is_extraction): it is
//! kept until it is removed, and its parents with it.

mod applier;
mod blobs;
mod content;
mod disk;
mod fault;
mod garbage;
mod images;
mod index;
mod ingest;
mod introspection;
mod layout;
mod lease_rows;
mod leases;
mod local;
mod mounts;
mod records;
mod removal;
mod resource;
mod rows;
mod snapshots;
mod snapshotters;
mod state;
mod store;
mod whole;
mod work;

pub use local::Local;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
