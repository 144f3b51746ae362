// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Numbers such as the weights of a model, which hardly compress.

use std::f32::consts::TAU;
use std::io::{self, Write};

use fastrand::Rng;

/// Bytes of the numbers of each type.
const HALF: usize = 100_000_000;

/// The standard deviation.
const DEVIATION: f32 = 0.02;

/// Writes normally distributed numbers: those of the first half of the bytes are `f32`, then `bf16`.
pub(crate) fn write(out: &mut dyn Write) -> io::Result<()> {
    let mut random = Rng::with_seed(1);
    for _ in 0..HALF / 4 {
        out.write_all(&normal(&mut random).to_le_bytes())?;
    }
    for _ in 0..HALF / 2 {
        // The upper half of an `f32` is a `bf16`.
        let [_, _, upper @ ..] = normal(&mut random).to_le_bytes();
        out.write_all(&upper)?;
    }
    Ok(())
}

/// Returns a number by the Box-Muller transform.
fn normal(random: &mut Rng) -> f32 {
    // The logarithm of zero is infinite.
    let radius = (-2.0 * (1.0 - random.f32()).ln()).sqrt();
    radius * (TAU * random.f32()).cos() * DEVIATION
}
