// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Platforms of container images, with OS features: parse, format, normalise,
//! match and order them.
//!
//! ```
//! use resnap_platforms::{Matcher, Platform};
//!
//! let node: Platform = "linux(+erofs)/amd64".parse()?;
//! let plain: Platform = "linux/amd64".parse()?;
//! let native: Platform = "linux(+erofs)/amd64".parse()?;
//!
//! let entries = [(Some(&plain), "plain"), (Some(&native), "native")];
//! assert_eq!(Matcher::only(&node).pick(entries), ["native", "plain"]);
//! assert_eq!(Matcher::only(&plain).pick(entries), ["plain"]);
//! # Ok::<(), resnap_platforms::ParseError>(())
//! ```
//!
//! A platform is the object of that name in OCI image-spec `image-index.md`.
//! Its specifier, as users write it, is
//!
//! ```text
//! os[(version[+feature]...)][/architecture[/variant]]
//! ```
//!
//! or an architecture alone. All answers are meant to be those containerd
//! gives, that is `github.com/containerd/platforms` v1.0.0-rc.4;
//! `testdata/platform-vectors.tsv` holds 248 answers of that library (computed
//! on linux/amd64) and the tests replay each of them.
//!
//! An image's features are demands: an image may be used where each of them is
//! offered. So it is always the candidate whose features must be a subset of
//! the matcher's, and a matcher without features (such as the default one)
//! refuses every image that asks for any.
//!
//! # Departures from the reference
//!
//! Platforms come from images, so they are taken as hostile.
//!
//! - The operating system that an empty `os` stands for is always `linux`.
//! - A specifier whose percent-escapes are not UTF-8 is an error; Go strings
//!   hold any bytes.
//! - Formatting escapes every byte that the grammar allows in no version or
//!   feature, not only `%`, `+`, `(`, `)` and `/`, and in all parts: no control
//!   character gets into a log, and of a version or feature whatever it is can
//!   be parsed again.
//! - Formatting does not resolve `.` and `..` components.
//! - [`Matcher::only`] descends from a made-up variant such as `v999999999` in
//!   a bounded number of steps.
//! - Windows is recognised in any spelling, and a feature `win32k` listed twice
//!   is ignored like one listed once.

mod error;
mod escape;
mod matcher;
mod normalize;
mod parse;
mod platform;
mod vector;
mod windows;

#[cfg(test)]
mod reference;

pub use error::ParseError;
pub use matcher::Matcher;
pub use parse::parse_with_default;
pub use platform::Platform;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
