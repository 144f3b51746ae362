// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layouts as destinations.

#![allow(clippy::unwrap_used)]

mod foreign;
mod support;
mod writing;
