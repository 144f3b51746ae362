// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of the entries of an image layer, from its uncompressed tar stream.
//!
//! ```
//! # let stream = std::io::empty();
//! use resnap_layer::{EntryKind, Layer, Limits};
//!
//! let mut layer = Layer::new(stream, Limits::default());
//! while let Some(entry) = layer.next()? {
//!     if let EntryKind::File(_) = entry.kind {
//!         while let Some(piece) = layer.data()? {
//!             // piece.bytes is the data at piece.offset of the file
//!         }
//!     }
//! }
//! let stream = layer.finish()?;
//! # Ok::<(), resnap_layer::Error>(())
//! ```
//!
//! Layers are defined by the OCI image-spec, `layer.md`; the formats by POSIX ustar and pax (`pax` in
//! POSIX.1), and by "Tar Internals" in GNU tar's manual. Images are built for containerd, and a chain ID must
//! name the same tree for every reader: so a stream is read as Go's `archive/tar` (1.26) and containerd's
//! `pkg/archive` (2.3) read it, or it is refused. Nearly 2000 streams with Go's results are in
//! `reader/tests/go.tsv`; any number of random ones can be compared (`reader/tests/go.rs`).
//!
//! | in the stream | here |
//! |---|---|
//! | `./a`, `/a`, `a/../b`, `../a` | resolved lexically inside the root |
//! | an entry for the root that is not a directory | skipped |
//! | `.wh..wh..opq`, of any type | [`EntryKind::Opaque`] |
//! | `.wh.NAME`, of any type and name | [`EntryKind::Whiteout`], also for files of AUFS itself |
//! | type NUL, `0` | a file; NUL with a name that ends in `/` is a directory |
//! | sparse: pax 0.0, 0.1, 1.0 | a file with [extents](File::extents) |
//! | an empty value of pax | the value of the entry's own header |
//! | `SCHILY.xattr.*` | extended attributes; of a repeated name the last |
//! | `LIBARCHIVE.xattr.*`, `SCHILY.acl.*` | ignored (libarchive writes `SCHILY.xattr` too) |
//! | global pax headers (type `g`) before all entries, in the root | ignored |
//! | a size on a link, directory or device | ignored: no data follows |
//! | a prefix in GNU's format that is not a time | a prefix, as Go wrote it before 1.8 |
//! | no trailer, or half of one | the end |
//!
//! # Differences
//!
//! All intended differences from Go and containerd, with their tests:
//!
//! | in the stream | here | Go, containerd | why |
//! |---|---|---|---|
//! | type `7`; GNU sparse files (type `S`) | files (`kinds`, `sparse`) | containerd refuses | they have only one meaning |
//! | the root as a directory | an entry (`root`) | containerd skips it | its mode and owner belong to the image |
//! | an extension header, then `g` | [`Fault::Ambiguous`] (`ambiguous_archives_are_refused`) | Go drops the extension, others keep it | no program writes it |
//! | `g` after an entry, in a directory, or named as a whiteout | as above | containerd creates its parents and removes what is there, others ignore it | no program writes it |
//! | a hard link through `..`, or with `/` at its end | as above | containerd follows links in the path | no program writes it |
//! | extension headers, and no entry | [`Fault::Truncated`] (`ends`) | ignored | something is missing |
//! | uid or gid below 0 or over 4294967294 | [`Fault::Owner`] (`numbers`) | modulo 2^32; 4294967295 means "unchanged" | no file can have it |
//! | a device number over 4095 or 1048575 | [`Fault::Device`] (`devices_that_linux_has`) | truncated to 12 and 20 bits | no device can have it |
//! | a time that overflows with its fraction | [`Fault::Number`] (`times`) | wraps | no file can have it |
//! | sparse maps with signs or of other sizes than their data, in files that are not read | [`Fault::Sparse`] (`table`) | ignored | no program writes it |
//! | an attribute without a name, a NUL in `GNU.sparse.name`, no target, in ignored entries | [`Fault::Name`] (`table`) | ignored | no program writes it |
//! | an unknown type, in an ignored entry | [`Fault::Type`] (`table`) | ignored | no program writes it |
//! | over [`Limits`] | [`Fault::Limit`] (`malformed_layers_are_refused`) | other limits, or none | memory |
//!
//! # Hostile streams
//!
//! For any bytes the result is an entry, or an [`Error`] that names the offset and the entry. Nothing panics,
//! and memory is limited by [`Limits`] and one buffer, not by what a header claims. Between two entries at
//! most [`Limits::extensions`] bytes of headers are read, including global ones, and at most 1 MiB of a
//! sparse file's map; all other time is proportional to the bytes of the stream. Paths have no empty
//! component, no `.`, `..` or NUL. A component may be a symbolic link that an earlier entry created: the
//! caller must handle that, for example with [`resolve`].
//!
//! # Why not a crate
//!
//! `tar` reads pax sparse files wrongly without an error. `tar-core` reads them correctly, but has times as
//! `u64` seconds, needs an entry with all its extension headers contiguous in one buffer, and parses them
//! again whenever that buffer was too short. All other readers need a file, or are asynchronous, which has no
//! advantage on top of a decompressor.

mod compose;
mod current;
mod entry;
mod entry_source;
mod error;
mod header;
mod limits;
mod name;
mod number;
pub mod path;
mod pax;
mod reader;
pub mod resolve;
mod source;
mod sparse;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use entry::{Entry, EntryKind, Extent, File, Metadata, Piece, Time, Xattr};
pub use entry_source::EntrySource;
pub use error::{Error, Fault};
pub use limits::Limits;
pub use reader::Layer;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
