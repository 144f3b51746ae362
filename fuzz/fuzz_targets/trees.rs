// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing layers to directories and to images: both hold the same, or refuse it. As root.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use resnap_applier::testing::{compare, layers};

/// In memory: thousands of files a second.
const WITHIN: &str = "/dev/shm";

fuzz_target!(|bytes: &[u8]| compare(&layers(bytes), Path::new(WITHIN)));
