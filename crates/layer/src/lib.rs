// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entries of an image layer, read once from its uncompressed tar stream.
//!
//! ```
//! # let stream = std::io::empty();
//! use resnap_layer::{Kind, Layer, Limits};
//!
//! let mut layer = Layer::new(stream, Limits::default());
//! while let Some(entry) = layer.next()? {
//!     if let Kind::File(_) = entry.kind {
//!         while let Some(piece) = layer.data()? {
//!             // piece.bytes belong at piece.offset of the file
//!         }
//!     }
//! }
//! let stream = layer.finish()?;
//! # Ok::<(), resnap_layer::Error>(())
//! ```
//!
//! What a layer is: OCI image-spec `layer.md`. The formats: POSIX ustar and pax (`pax` in POSIX.1),
//! GNU tar's manual, "Tar Internals". What containerd makes of them is what images are built
//! against, so where the formats leave room this follows Go's `archive/tar` and containerd's
//! `pkg/archive`, as of containerd 2.4:
//!
//! | in the stream | here |
//! |---|---|
//! | `./a`, `/a`, `a/../b`, `../a` | resolved by their names inside the root |
//! | an entry that is the root and no directory | skipped |
//! | `.wh.NAME`, `.wh..wh..opq`, of any type | [`Kind::Whiteout`], [`Kind::Opaque`] |
//! | other names `.wh..wh.*`, or below one | AUFS's own files: skipped |
//! | type NUL, `0`, `7` | a file; NUL with a name that ends in `/` is a directory |
//! | sparse: GNU type `S`; pax 0.0, 0.1, 1.0 | a file with [extents](File::extents) |
//! | `SCHILY.xattr.*` | extended attributes; of a repeated name the last |
//! | `LIBARCHIVE.xattr.*`, `SCHILY.acl.*` | ignored (libarchive writes `SCHILY.xattr` too) |
//! | global pax headers (type `g`) | ignored |
//! | a size on a link, directory or device | ignored: no data follows |
//! | any other type | an error |
//! | no trailer, or half of one | the end |
//!
//! # Hostile streams
//!
//! Whatever the bytes are, the answer is an entry or an [`Error`] that names the offset and the
//! entry; nothing here panics, and memory is bounded by [`Limits`] and one buffer, not by what a
//! header claims. Paths that come out have no empty component, no `.`, `..` or NUL in them. That a
//! component may be a symbolic link that an earlier entry made is for the caller to mind.
//!
//! # Why not a crate
//!
//! `tar` gets pax sparse files wrong without saying so. `tar-core` gets them right, but has times
//! as `u64` seconds, wants an entry with all its extension headers contiguous in one buffer, and
//! parses them anew whenever that buffer was too short. All other readers want a file, or are
//! asynchronous, which buys nothing below a decompressor.

mod entry;
mod error;
mod header;
mod number;
mod path;
mod pax;
mod reader;
mod source;
mod sparse;
pub mod way;

#[cfg(test)]
mod fixture;

pub use entry::{Entry, Extent, File, Kind, Piece, Time, Xattr};
pub use error::{Error, Fault};
pub use reader::{Layer, Limits};
