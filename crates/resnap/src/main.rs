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

use std::env;
use std::io::{self, IsTerminal as _};
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
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let wanted = env::var("RESNAP_LOG").unwrap_or_default();
    let filter = EnvFilter::try_new(filter(&wanted)).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();

    let mut output = Output::new(arguments.common.json);
    let outcome = match run(arguments, &matches, &mut output) {
        Ok(outcome) => outcome,
        Err(error) => output.error(&error, None),
    };
    ExitCode::from(outcome as u8)
}

/// What is logged, as directives: a level alone is that of our own crates, and others only warn
/// unless they are named.
fn filter(wanted: &str) -> String {
    let mut directives = vec!["warn".to_owned()];
    let wanted = wanted.split(',').map(str::trim);
    for directive in wanted.filter(|directive| !directive.is_empty()) {
        match directive.parse::<LevelFilter>() {
            Ok(level) if level > LevelFilter::WARN => directives.push(format!("resnap={level}")),
            Ok(level) => directives.push(level.to_string()),
            Err(_) => directives.push(directive.to_owned()),
        }
    }
    directives.join(",")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_our_own_crates() {
        for (wanted, directives) in [
            ("", "warn"),
            ("info", "warn,resnap=info"),
            ("error", "warn,error"),
            ("debug,h2=info", "warn,resnap=debug,h2=info"),
            ("resnap_cri_proxy=trace", "warn,resnap_cri_proxy=trace"),
        ] {
            assert_eq!(filter(wanted), directives);
            assert!(EnvFilter::try_new(directives).is_ok());
        }
    }
}
