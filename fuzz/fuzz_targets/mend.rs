// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Makes the checksums of tar headers right, so that what is behind them is reached.

/// A copy of `stream` in which every block that says it is a header has a right checksum.
pub fn mend(stream: &[u8]) -> Vec<u8> {
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
