// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `make decoders`: decoders of gzip, each in a process of its own, next to the one that resnap uses.
//!
//! All figures of the table are of one run. In each round every decoder decompresses every input once, in random
//! order, so that what else the machine does meets them alike. Every decoder verifies the checksum, and the
//! output is thrown away. `--rounds N` changes the number of rounds.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod decoder;
mod input;
mod isal;
mod measure;
mod miniz;
mod model;
mod table;

use std::env;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::decoder::DECODERS;
use crate::input::Input;
use crate::measure::{CHILD, Sample, load, measure};
use crate::table::Row;

/// Rounds, unless an option says otherwise.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => compare(ROUNDS),
        ["--rounds", rounds] => {
            let count = rounds.parse::<NonZeroUsize>();
            compare(count.with_context(|| format!("--rounds {rounds}"))?.get())
        }
        // What this program starts for each measurement.
        [CHILD, decoder, input] => {
            let decoder = DECODERS.get(decoder.parse::<usize>()?);
            let decoder = decoder.context("no such decoder")?;
            println!("{}", measure(decoder, Path::new(input))?);
            Ok(())
        }
        _ => bail!("usage: decoders [--rounds N]"),
    }
}

/// Measures all decoders on all inputs, and prints the table.
fn compare(rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir().context("create a temporary directory")?;
    eprintln!("making the inputs...");
    let inputs = input::make(directory.path())?;
    for input in &inputs {
        println!("{input}");
        // No round is to be the one that reads from the disk.
        io::copy(&mut File::open(&input.path)?, &mut io::sink())?;
    }
    let before = load()?;
    let mut rows = Row::all(&inputs);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}...");
        fastrand::shuffle(&mut rows);
        for row in &mut rows {
            row.samples.push(sample(row.decoder, row.input)?);
        }
    }
    let after = load()?;
    println!("Load of the machine: {before:.2} before, {after:.2} at the end; {rounds} rounds.");
    println!(
        "To read the blob is part of all times, and so is to get pages for what is in memory.\n"
    );
    print!("{}", table::text(rows)?);
    Ok(())
}

/// Returns what one run of a decoder took.
fn sample(decoder: usize, input: &Input) -> Result<Sample> {
    let sample = Sample::of_child(decoder, &input.path)?;
    if sample.bytes != input.size {
        let (is, want) = (sample.bytes, input.size);
        bail!(
            "decoder {decoder} made {is} bytes of {:?}, not {want}",
            input.name
        );
    }
    Ok(sample)
}
