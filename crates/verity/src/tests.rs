// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tests of devices, against a slow implementation of the format.

mod append;
mod common;
mod hostile;
mod leaves;
#[cfg(feature = "signatures")]
mod signatures;
#[cfg(feature = "signatures")]
mod signing;
mod verify;
