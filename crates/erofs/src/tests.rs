// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tests that write layers as images and read them.

mod common;
mod index;
#[cfg(target_os = "linux")]
mod kernel;
mod merge;
mod merged_image;
mod prefixes;
mod random;
mod tree;
