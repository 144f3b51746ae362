// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The command line of resnap.
//!
//! Data goes to standard output, progress and logs to standard error. The exit code is 0 for done
//! or ready, 1 for `check --snapshotter` and not ready, 2 for any error, 130 for stopped by a signal.

mod args;
mod commands;
mod config;
mod daemon;
mod output;
mod progress;
mod timeline;
mod warm;

use std::io;
use std::process::ExitCode;

use args::{Arguments, Command, ConfigCommand};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use commands::daemon::Worker;
use commands::{
    Outcome, check, engine, explain, generate, images, jobs, leases, pick, snapshotters, unpack,
    warm as warm_command, working_engine,
};
use config::Config;
use daemon::Sockets;
use output::Output;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_from_env("RESNAP_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();

    let mut output = Output::new(arguments.common.json);
    let outcome = match run(arguments, &matches, &mut output) {
        Ok(outcome) => outcome,
        Err(error) => output.error(&error, None),
    };
    ExitCode::from(outcome as u8)
}

fn run(arguments: Arguments, matches: &ArgMatches, output: &mut Output) -> anyhow::Result<Outcome> {
    let Arguments { common, command } = arguments;
    let serve = match &command {
        Command::Completions { shell } => return generate::completions(*shell, output),
        Command::Man => return generate::man(output),
        Command::Serve(serve) | Command::Config(ConfigCommand::Explain(serve)) => Some(serve),
        _ => None,
    };
    let config = Config::load(&common, serve, matches)?;
    output.set_namespace(&config.namespace.value);
    let sockets = match &command {
        Command::Serve(_) => Sockets::handed_over()?,
        _ => Sockets::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Unpack(arguments) => {
                let worker = Worker::find(&config, working_engine(&config)).await?;
                unpack::run(&worker, arguments, output).await
            }
            Command::Serve(_) => daemon::run(&config, sockets).await,
            Command::Config(ConfigCommand::Explain(_)) => explain::run(&config, output).await,
            Command::Leases(arguments) => {
                leases::run(&working_engine(&config).await?, arguments, output).await
            }
            Command::Warm(arguments) => {
                let engine = working_engine(&config).await?;
                warm_command::run(&engine, pick(&config).await?, arguments, output).await
            }
            Command::Check(arguments) => {
                let worker = Worker::find(&config, engine(&config)).await?;
                check::run(&worker, arguments, output).await
            }
            Command::Jobs(arguments) => jobs::run(&config, arguments, output).await,
            Command::Cancel(arguments) => jobs::cancel(&config, arguments, output).await,
            Command::Images => images::run(&engine(&config).await?, output).await,
            Command::Snapshotters => snapshotters::run(&engine(&config).await?, output).await,
            // They need nothing, and were done above.
            Command::Completions { .. } | Command::Man => Ok(Outcome::Done),
        }
    })
}
