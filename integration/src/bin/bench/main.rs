// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `make bench`: what resnap takes on a real containerd, next to what `ctr` takes there.
//!
//! Every table is of one run: its variants take turns, so that what else the machine does meets
//! them alike, and medians and their ratios are shown. Samples go to `target/bench/<name>.json`, and all tables
//! to `target/bench/index.html`.
//! The names of tables as arguments choose some.
//!
//! `RESNAP_BENCH_BINARY=PROGRAM` has `warm`, `images`, `proxy`, `pods`, `streams`, `hostile`, `apply`, `sibling`
//! and `convert`
//! measure another build of resnap as well, in turns with this one.

// Printing is the purpose of this program.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod apply;
mod cold;
mod convert;
mod fetch;
mod herd;
mod hostile;
mod images;
mod memory;
mod misbehaving;
mod page;
mod plot;
mod pods;
mod process;
mod proxy;
mod pull;
mod sample;
mod setup;
mod sibling;
mod streams;
mod table;
mod verity;
mod warm;

use std::process::ExitCode;

use anyhow::Result;
use process::load;
use resnap_integration::daemon::in_private_namespaces;
use setup::Setup;
use table::{Load, Table};

type Measure = fn(&Setup) -> Result<Table>;

const TABLES: &[(&str, Measure)] = &[
    ("warm", warm::run),
    ("images", images::run),
    ("memory", memory::run),
    ("cold", cold::run),
    ("herd", herd::run),
    ("proxy", proxy::run),
    ("pods", pods::run),
    ("streams", streams::run),
    ("misbehaving", misbehaving::run),
    ("hostile", hostile::run),
    ("apply", apply::run),
    ("sibling", sibling::run),
    ("fetch", fetch::run),
    ("pull", pull::run),
    ("verity", verity::run),
    ("convert", convert::run),
];

fn main() -> ExitCode {
    match in_private_namespaces().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let setup = Setup::start()?;
    let mut measured = Vec::new();
    for (name, measure) in TABLES {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            let before = load()?;
            let table = measure(&setup)?;
            let after = load()?;
            let load = Load { before, after };
            table.show(load);
            table.write(load)?;
            measured.push((table, load));
            // Also if the next one fails.
            page::write(&measured)?;
        }
    }
    setup.stop()
}
