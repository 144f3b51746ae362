// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image layers as EROFS images: a writer that reads a layer once, and a reader of trees.
//!
//! ```
//! use std::io::Cursor;
//! use resnap_erofs::{ErofsReader, Memory, NoLower, Writer};
//! use resnap_layer::Layer;
//!
//! # let stream = std::io::empty();
//! let mut layer = Layer::new(stream, Default::default());
//! let mut writer = Writer::new(Cursor::new(Vec::new()), Box::new(Memory::new(1 << 20)))?;
//! writer.add(&mut layer)?;
//! // The diff ID is known here, and the layers below are ready.
//! let (file, summary) = writer.finish(&mut NoLower, [0; 16])?;
//!
//! let image = ErofsReader::open(file.into_inner())?;
//! assert_eq!(image.inodes(), summary.inodes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The image
//!
//! ```text
//! 0        superblock, at byte 1024
//! 4096     data of files, each from a block's start, in the layer's order
//! meta     inodes: 64 bytes, extended attributes, then what is inline:
//!          the target of a symbolic link, the last part of a directory;
//!          a target that does not fit is in the blocks behind its inode
//!          other blocks of directories
//! ```
//!
//! Blocks have 4096 bytes; nothing is compressed; no feature is used that Linux 5.4 does not have.
//! Inodes are extended, as only those have a time of their own; seconds are signed for Linux, so
//! times before 1970 are kept. Bytes are the same for the same layer, UUID and answers of [`Lower`].
//!
//! - **Data goes to its place as it comes**, and nothing of it is kept. Memory is for the tree: some
//!   150 bytes an inode and its name, bounded by a [`Governor`].
//! - **Data is never inline**, as containerd has it, too (`mkfs.erofs -Enoinline_data`): inodes are
//!   64 to a block and in the order of directories, so that looking through a tree reads little; a
//!   file's pages are its blocks. A small file takes 4 KiB, as on other file systems.
//! - **Metadata comes last**, so that nothing is moved or written twice, whatever later entries do to
//!   earlier ones, and so that the layers below may still be under way while data is written.
//! - **Holes** of sparse files are holes of the image's file. They take addresses (an image has at
//!   most 16 TiB) but no room. Chunks with null addresses would take neither, but cannot be mounted
//!   before Linux 5.15.
//!
//! # What becomes of a layer
//!
//! The tree is the one that containerd's differ makes in the upper directory of an overlay, except
//! where the last column says otherwise.
//!
//! | in the layer | in the image | |
//! |---|---|---|
//! | a whiteout | a character device 0:0 with mode 0, and `trusted.overlay.origin` on its directory | as `mkfs.erofs --aufs`: without the attribute overlayfs lists the device where nothing lies below |
//! | an opaque marker | `trusted.overlay.opaque=y` | |
//! | a whiteout and a directory of one name, or something in it, in any order | the directory, opaque | the image spec: whiteouts are about lower layers; containerd forgets the whiteout or fails |
//! | a whiteout and another thing of one name | the thing | the same |
//! | a directory that is deleted, has only whiteouts in it and is not stated | a whiteout | containerd refuses it |
//! | a whiteout in the lowest layer ([`Writer::lowest`]) | what the layer has there so far is gone | |
//! | a file and then a directory of one name | the directory, through which the lower one shows | |
//! | an entry for what is there | replaces it, with all that is in it; a directory only changes its metadata | |
//! | a parent that is a symbolic link of this layer | followed inside the root | |
//! | a parent that is a file or device | an error | |
//! | a parent that is not there | a directory with the metadata it has below ([`Lower`]); 0755, root, 1970 if there is none | containerd: the time of unpacking |
//! | the root | its metadata | containerd ignores them |
//! | a hard link | a name of the same inode, which gets its metadata; attributes are added | |
//! | a hard link to nothing, to a directory, or through what it replaces | an error | |
//! | attributes `trusted.*`, of unknown kinds, `user.*` of links and devices | left out | |
//! | what is made in a directory with a default access control list | an error | containerd: it inherits the list |
//! | a device number beyond 12 and 20 bits | an error | |
//!
//! # Hostile input
//!
//! Layers and images may hold anything. Nothing panics, no size is believed before the bytes are
//! there, and looking something up in an [`ErofsReader`] takes a bounded number of reads. A tree that is
//! walked through [`ErofsReader::entries`] may have loops; who walks must count.
//!
//! - **Memory** of a [`Writer`] is what its [`Governor`] gives, whatever the bytes come from: each
//!   inode and name counts, those that are replaced later too, and each different set of attributes,
//!   also of layers below. Besides, there are a buffer and one entry. A [`Stack`] keeps one path.
//! - **Time** to add an entry goes with its bytes and the names on its way, of which there are a
//!   bounded number for an entry and for all of them ([`resnap_layer::way`]). [`Writer::finish`] asks [`Lower`] at most once for each
//!   directory; of a [`Stack`] that takes one lookup an image. It may be long where there are many of
//!   both: an error from [`Lower`], or from [`ReadAt`], stops it.

mod dirent;
mod error;
mod format;
mod image;
mod layout;
mod lower;
mod output;
mod room;
mod stack;
mod tree;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub use error::{Error, Fault};
pub use image::{Entries, ErofsReader, ImageError, Named, Node, ReadAt};
pub use layout::Summary;
pub use lower::{Lower, Metadata, NoLower};
pub use room::{Governor, Memory, Refusal};
pub use stack::Stack;
pub use writer::Writer;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
