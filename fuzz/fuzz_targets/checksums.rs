// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Corrects the checksums of tar headers, so that the parser gets past them.

/// Returns a copy of `stream` in which every block with the magic of a header has a correct checksum.
pub fn correct(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    for block in stream.chunks_exact_mut(512) {
        if block[257..262] != *b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    stream
}
