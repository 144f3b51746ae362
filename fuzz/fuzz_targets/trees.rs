// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writes layers as directories and as EROFS images, which must have the same content or be refused for the
//! same reason. It needs root.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use resnap_applier::testing::{compare, layers};

/// A file system in memory, for thousands of files per second.
const WITHIN: &str = "/dev/shm";

fuzz_target!(|bytes: &[u8]| compare(&layers(bytes), Path::new(WITHIN)));
