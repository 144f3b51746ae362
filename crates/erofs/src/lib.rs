// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image layers as EROFS images: a writer that reads a layer once, a reader of the trees of images, and
//! [`merge`], which makes one image of those of all layers.
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
//! // By now the diff ID is known, and the layers below are ready.
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
//! 4096     data of files, each aligned to a block, in the order of the layer
//! meta     inodes: 64 bytes, extended attributes, then what is inline:
//!          the target of a symbolic link, the last part of a directory;
//!          a target that does not fit is in the blocks after its inode
//!          blocks of directories
//! ```
//!
//! Blocks have 4096 bytes, nothing is compressed, and Linux 5.4 supports all features that are used.
//! Inodes are extended, because only those have their own time; Linux treats seconds as signed, so times
//! before 1970 are kept. The same layer, UUID and [`Lower`] always give the same bytes.
//!
//! - **Data is written as it is read**, and not kept. Memory is used for the tree: about 150 bytes for an
//!   inode and its name, limited by a [`Governor`].
//! - **Data is never inline**, as in containerd (`mkfs.erofs -Enoinline_data`): a block has up to 64 inodes,
//!   in the order of directories, so that listing a tree reads few blocks; the pages of a file are its
//!   blocks. A small file takes 4 KiB, as on other file systems.
//! - **Metadata is written last**, so that nothing is moved or written twice when later entries replace
//!   earlier ones, and so that data can be written before the layers below are ready.
//! - **Holes** of sparse files are holes of the image's file. They take addresses (an image has at most
//!   16 TiB) but no space. Chunks with null addresses would take neither, but need Linux 5.15.
//!
//! # The index of a tar
//!
//! [`Writer::index`] makes an image whose files have their data in the layer's tar, which is not copied:
//!
//! ```text
//! 0        superblock, at byte 1024, and the slot of one device, the tar
//! 4096     data of sparse files
//! meta     as above; a file has the location of its data in the tar inline
//!          zeros up to a multiple of 4096
//! ```
//!
//! Blocks have 512 bytes, as in a tar. They are smaller than a page, which needs Linux 6.4.
//! The data of a file is one chunk, or two if it exceeds 1 TiB. The rest is the same as in a whole image:
//! the trees, the order of inodes, and what is refused.
//!
//! - **In one file** the index is followed by the whole tar and by zeros up to a multiple of 4096
//!   ([`joined_size`]), as containerd writes a layer with `enable_tar_index`. **With the tar as a device**
//!   (`mount -o device=TAR INDEX`, [`ErofsReader::with_devices`]), nothing is joined. The index alone can be
//!   listed, but its files cannot be read.
//! - **Sparse files** have their data in the index: in a tar it is not aligned as it is in the file.
//! - **A tar has less than 2 TiB** with its index, because addresses have 32 bits. An entry beyond that is
//!   refused by its name.
//!
//! # The tree of a layer
//!
//! The tree is the same that containerd's differ writes to the upper directory of an overlay, except where
//! the last column says otherwise.
//!
//! | in the layer | in the image | |
//! |---|---|---|
//! | a whiteout | a character device 0:0 with mode 0, and `trusted.overlay.origin` on its directory | as `mkfs.erofs --aufs`: without the attribute overlayfs lists the device if there is no lower directory |
//! | an opaque marker | `trusted.overlay.opaque=y` | |
//! | a whiteout and a directory of the same name, or a file in it, in any order | the directory, opaque | image spec: whiteouts apply to lower layers; containerd ignores the whiteout or fails |
//! | a whiteout and a file of the same name | the file | the same |
//! | a deleted directory that has only whiteouts and is not stated | a whiteout | containerd refuses it |
//! | a whiteout in the lowest layer ([`Writer::lowest`]) | removes what the layer has there so far | |
//! | a file and then a directory of the same name | the directory, merged with the lower one | |
//! | an entry for an existing path | replaces it with everything in it; a directory only changes its metadata | |
//! | a parent that is a symbolic link of this layer | followed inside the root | |
//! | a parent that is a file or device | an error | |
//! | a missing parent | a directory with the metadata of the lower one ([`Lower`]), or else 0755, root, 1970 | containerd: the time of unpacking |
//! | the root | its metadata | containerd ignores it |
//! | a hard link | a name of the same inode, which gets its metadata; attributes are added | |
//! | a hard link to nothing, to a directory, or through a path that it replaces | an error | |
//! | attributes `trusted.*`, of unknown namespaces, `user.*` of links and devices | left out | |
//! | an entry in a directory with a default access control list | an error | containerd: it inherits the list |
//! | a device number beyond 12 and 20 bits | an error | |
//!
//! # Hostile input
//!
//! Layers and images may contain anything. Nothing panics, no claimed size is trusted before the bytes are
//! read, and a lookup in an [`ErofsReader`] takes a bounded number of reads, as does data of a given length:
//! two for each chunk. A tree that is walked with [`ErofsReader::entries`] may have loops; the caller must
//! limit the walk.
//!
//! | in an image | read |
//! |---|---|
//! | data in blocks, inline, or in chunks (addresses or indexes) with holes | yes |
//! | data on other devices | in the image's own file at the addresses in their slots, or on the devices that are given |
//! | compressed data, chunks with addresses of 48 bits | refused; trees with them are read |
//! | blocks of 512 bytes to 64 KiB | yes |
//! | blocks of directories of another size, unknown features | refused |
//!
//! - **Memory** of a [`Writer`] is limited by its [`Governor`], whatever the layer contains: each inode and
//!   name counts, also those that are replaced later, and each distinct set of attributes, also of the
//!   layers below. In addition there are a buffer and one entry. A [`Stack`] keeps one path, and [`merge`] a block
//!   of each directory that is merged.
//! - **Time** to add an entry is proportional to its bytes and to the components of its path, whose number is
//!   limited for an entry and for all of them ([`resnap_layer::resolve`]). [`Writer::finish`] calls [`Lower`]
//!   at most once for each directory; in a [`Stack`] that takes one lookup in each image. This may take long
//!   if there are many of both: an error from [`Lower`], or from [`ReadAt`], stops it.

mod add;
mod block;
mod budget;
mod chunk;
mod dirent;
mod error;
mod format;
mod governor;
mod image;
mod layout;
mod lookup;
mod lower;
mod merge;
mod output;
mod overlay;
mod plan;
mod read_xattr;
mod reader;
mod source;
mod stack;
mod superblock;
mod tree;
mod union;
mod walk;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub use error::{Error, Fault};
pub use governor::{Governor, Memory, Refusal};
pub use image::Node;
pub use layout::{Summary, joined_size};
pub use lower::{Lower, NoLower};
pub use merge::merge;
pub use reader::{Entries, ErofsReader, Named};
pub use source::{ImageError, ReadAt};
pub use stack::Stack;
pub use writer::Writer;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
