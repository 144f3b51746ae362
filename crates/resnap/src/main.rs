// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The command line of resnap.
//!
//! Data goes to standard output, progress and logs to standard error. The exit code is 0 for done
//! or ready, 1 for `check --snapshotter` and not ready, 2 for any error, 130 for stopped by a signal.

mod args;
mod commands;
mod output;
mod progress;

use std::io;
use std::process::ExitCode;

use args::{Arguments, Command};
use clap::Parser as _;
use commands::{
    Outcome, check, engine, generate, images, leases, serve, snapshotters, unpack, working_engine,
};
use output::Output;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("RESNAP_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();

    let mut output = Output::new(&arguments.common);
    let outcome = match run(arguments, &mut output) {
        Ok(outcome) => outcome,
        Err(error) => output.error(&error, None),
    };
    ExitCode::from(outcome as u8)
}

fn run(arguments: Arguments, output: &mut Output) -> anyhow::Result<Outcome> {
    let Arguments { common, command } = arguments;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Unpack(arguments) => {
                let engine = working_engine(&common, &arguments.work).await?;
                unpack::run(&engine, arguments, output).await
            }
            Command::Serve(arguments) => serve::run(&common, arguments).await,
            Command::Leases(arguments) => {
                let engine = working_engine(&common, &arguments.work).await?;
                leases::run(&engine, arguments, output).await
            }
            Command::Check(arguments) => {
                check::run(&engine(&common).await?, arguments, output).await
            }
            Command::Images => images::run(&engine(&common).await?, output).await,
            Command::Snapshotters => snapshotters::run(&engine(&common).await?, output).await,
            Command::Completions { shell } => generate::completions(shell, output),
            Command::Man => generate::man(output),
        }
    })
}
