// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! From layers to images and back.

mod common;
mod merge;
mod prefixes;
mod random;
mod tree;
