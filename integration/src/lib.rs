// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Real daemons, real images, and the tools the live suite is made of.

pub mod cri;
pub mod daemon;
pub mod debian;
pub mod dm_verity;
pub mod image;
pub mod machine;
pub mod python;
pub mod registry;
pub mod tap;
pub mod tree;
pub mod uml;
pub mod wire;
