// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Bytes that do not compress.

/// Returns `length` bytes that do not compress, always the same ones for a seed, which is not zero.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
