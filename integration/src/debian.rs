// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Real programs and real file trees out of Debian's packages, none installed.
//!
//! A package is downloaded once to `<target>/integration/debs/<suite>/` and
//! unpacked into a private prefix. apt reaches the newer suites through the
//! mirror that it already uses, with lists and a cache of its own below
//! `<target>/integration/apt/`; the system's lists, cache and libraries are
//! never written.

mod apt;
mod command;
mod dirs;
mod packages;
mod suite;
mod tools;

pub use command::output;
pub(crate) use command::run;
pub(crate) use dirs::lock;
pub use dirs::target_dir;
pub use packages::{TarReader, deb, debs, tar, tar_reader, unpack};
pub use suite::Suite;
pub use tools::{Dist, Provisioned, provision};
pub(crate) use tools::{lay_out, libraries, loader, tools, write_program};
