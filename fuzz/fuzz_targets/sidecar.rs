// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reads arbitrary bytes as the sidecar of a layer. What is read must be the same after it was written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use resnap_verity::Sidecar;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sidecar) = Sidecar::parse(bytes) else {
        return;
    };
    // The root hash is of one spelling only; indentation may make a file too large.
    if let Ok(encoded) = sidecar.encode() {
        let again = Sidecar::parse(&encoded).expect("what was written");
        assert_eq!(again.root_hash, sidecar.root_hash);
        assert_eq!(again.hash_offset, sidecar.hash_offset);
        assert_eq!(again.encode().expect("the same"), encoded);
    }
});
