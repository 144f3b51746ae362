// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entries of an image layer, read once from its uncompressed tar stream.
//!
//! ```
//! # let stream = std::io::empty();
//! use resnap_layer::{EntryKind, Layer, Limits};
//!
//! let mut layer = Layer::new(stream, Limits::default());
//! while let Some(entry) = layer.next()? {
//!     if let EntryKind::File(_) = entry.kind {
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
//! against, and a chain ID names one tree, whoever unpacks it: so a stream is read as Go's
//! `archive/tar` (1.26) and containerd's `pkg/archive` (2.3) read it, or it is refused. Nearly 2000
//! streams with Go's answers are in `reader/tests/go.tsv`; any number of random ones can be compared
//! (`reader/tests/go.rs`).
//!
//! | in the stream | here |
//! |---|---|
//! | `./a`, `/a`, `a/../b`, `../a` | resolved by their names inside the root |
//! | an entry that is the root and no directory | skipped |
//! | `.wh..wh..opq`, of any type | [`EntryKind::Opaque`] |
//! | `.wh.NAME`, of any type and name | [`EntryKind::Whiteout`]; AUFS's own files have no other meaning |
//! | type NUL, `0` | a file; NUL with a name that ends in `/` is a directory |
//! | sparse: pax 0.0, 0.1, 1.0 | a file with [extents](File::extents) |
//! | an empty value of pax | what the entry's own header says |
//! | `SCHILY.xattr.*` | extended attributes; of a repeated name the last |
//! | `LIBARCHIVE.xattr.*`, `SCHILY.acl.*` | ignored (libarchive writes `SCHILY.xattr` too) |
//! | global pax headers (type `g`) before all entries, in the root | ignored |
//! | a size on a link, directory or device | ignored: no data follows |
//! | a prefix in GNU's format that is no time | a prefix, as Go wrote it before 1.8 |
//! | no trailer, or half of one | the end |
//!
//! # What differs
//!
//! All that differs from Go and containerd on purpose. By the test in brackets:
//!
//! | in the stream | here | Go, containerd | why |
//! |---|---|---|---|
//! | type `7`; GNU sparse files (type `S`) | files (`kinds`, `sparse`) | containerd refuses | they mean one thing only |
//! | the root as a directory | an entry (`root`) | containerd skips it | its mode and owner are the image's |
//! | an extension header, then `g` | [`Fault::Ambiguous`] (`what_readers_disagree_about_is_refused`) | Go drops the extension, others keep it | nobody writes it |
//! | `g` after an entry, in a directory, or named as a whiteout | as above | containerd makes its parents and removes what is there, others ignore it | nobody means it |
//! | a hard link through `..`, or with `/` at its end | as above | containerd looks for links on the way | nobody writes it |
//! | extension headers, and no entry | [`Fault::Truncated`] (`ends`) | ignored | something is missing |
//! | uid or gid below 0 or over 4294967294 | [`Fault::Owner`] (`numbers`) | modulo 2^32; 4294967295 is nobody's | no file can have it |
//! | a device number over 4095 or 1048575 | [`Fault::Device`] (`devices_that_linux_has`) | cut to 12 and 20 bits | no device can have it |
//! | a time that overflows with its fraction | [`Fault::Number`] (`times`) | wraps | no file can have it |
//! | sparse maps with signs or of other sizes than their data, in files that nobody reads | [`Fault::Sparse`] (`table`) | ignored | nobody writes it |
//! | an attribute without a name, a NUL in `GNU.sparse.name`, no target, where nothing comes of them | [`Fault::Name`] (`table`) | ignored | nobody writes it |
//! | an unknown type, where nothing comes of it | [`Fault::Type`] (`table`) | ignored | nobody writes it |
//! | over [`Limits`] | [`Fault::Limit`] (`what_is_refused`) | other limits, or none | memory |
//!
//! # Hostile streams
//!
//! Whatever the bytes are, the answer is an entry or an [`Error`] that names the offset and the
//! entry; nothing here panics, and memory is bounded by [`Limits`] and one buffer, not by what a
//! header claims. Between two entries at most [`Limits::extensions`] bytes of headers are read,
//! global ones too, and at most 1 MiB of a sparse file's map; all else takes time by the bytes of the
//! stream. Paths that come out have no empty component, no `.`, `..` or NUL in them. That a
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

pub use entry::{Entry, EntryKind, Extent, File, Piece, Time, Xattr};
pub use error::{Error, Fault};
pub use reader::{Layer, Limits};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
