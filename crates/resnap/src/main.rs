// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The command line of resnap.
//!
//! Data goes to standard output, progress and logs go to standard error. [`ExitStatus`] has the exit
//! codes.

mod args;
mod arguments;
mod cache_use;
mod commands;
mod config;
mod connect;
mod daemon;
mod destination;
mod diff_plugin;
mod differ_order;
mod doctor;
mod documents;
mod exit_status;
mod install;
mod layer_bar;
mod local_images;
mod local_step;
mod logging;
mod output;
mod pending_images;
mod progress;
mod publish_args;
mod publish_step;
mod signer;
mod source_image;
mod timeline;
mod toml_table;
#[cfg(feature = "otlp")]
mod traces;
mod version;
mod warm;

use std::alloc::System;
use std::process::ExitCode;

use anyhow::bail;
use args::{Arguments, Command, ConfigCommand};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use commands::executor::Executor;
use commands::{
    artifacts, cache, check, check_all, convert, doctor as doctor_command, evict, explain,
    generate, images, install as install_command, jobs, leases, migrate, remove, snapshotters,
    unpack, verify, warm as warm_command,
};
use config::Config;
use connect::{engine, working_engine};
use daemon::Sockets;
use exit_status::ExitStatus;
use logging::LogFormat;
use output::Output;
use pending_images::keep_during;
use zeroizing_alloc::ZeroAlloc;

/// Zeroes memory that is freed. The credentials of pulls pass through buffers of libraries.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let logging = logging::init();
    let format = logging.as_ref().copied().unwrap_or(LogFormat::Text);
    let mut output = Output::new(arguments.common.json, format);
    let ended = logging.and_then(|_| run(arguments, &matches, &mut output));
    let status = ended.unwrap_or_else(|error| output.error(&error, None));
    #[cfg(feature = "otlp")]
    traces::flush();
    ExitCode::from(status as u8)
}

fn run(
    arguments: Arguments,
    matches: &ArgMatches,
    output: &mut Output,
) -> anyhow::Result<ExitStatus> {
    let Arguments { common, command } = arguments;
    let serve = match &command {
        Command::Completions { shell } => return generate::completions(*shell, output),
        Command::Man => return generate::man(output),
        Command::Serve(serve) | Command::Config(ConfigCommand::Explain(serve)) => Some(serve),
        _ => None,
    };
    let mut config = Config::load(&common, serve, matches)?;
    output.set_engine(&config);
    if config.local.is_some() {
        command.require_local()?;
    }
    let sockets = match &command {
        Command::Serve(_) => Sockets::handed_over()?,
        _ => Sockets::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Unpack(mut arguments) => {
                local_images::find(&mut config, &mut arguments.images).await?;
                let executor = match arguments.from.is_empty() {
                    true => Executor::find(&config, working_engine(&config)).await?,
                    false => {
                        config.prepend_archives(&arguments.from)?;
                        Executor::Local(working_engine(&config).await?)
                    }
                };
                let unpacked = unpack::run(&executor, &config, arguments, output);
                keep_during(config.pending.as_ref(), unpacked).await
            }
            Command::Serve(_) => daemon::run(&config, sockets).await,
            Command::Config(ConfigCommand::Explain(_)) => explain::run(&config, output).await,
            Command::Leases(arguments) => {
                leases::run(&working_engine(&config).await?, arguments, output).await
            }
            Command::Warm(arguments) => {
                let engine = working_engine(&config).await?;
                warm_command::run(&engine, &config, arguments, output).await
            }
            Command::Migrate(arguments) => migrate::run(&config, arguments, output).await,
            Command::Evict(arguments) => evict::run(&config, arguments, output).await,
            Command::Check(arguments) if arguments.all => {
                check_all::run(&engine(&config).await?, &config, arguments, output).await
            }
            Command::Check(mut arguments) => {
                local_images::rename(&mut config, &mut arguments.images)?;
                let executor = Executor::find(&config, engine(&config)).await?;
                check::run(&executor, &config, arguments, output).await
            }
            Command::Doctor(arguments) => {
                let engine = working_engine(&config).await?;
                doctor_command::run(&engine, &config, arguments, output).await
            }
            Command::Verify(mut arguments) => {
                local_images::rename(&mut config, &mut arguments.images)?;
                verify::run(&working_engine(&config).await?, arguments, output).await
            }
            Command::Convert(arguments) => convert::run(&config, arguments, output).await,
            Command::Artifacts(command) => artifacts::run(&mut config, command, output).await,
            Command::Cache(command) => cache::run(&config, command, output).await,
            Command::Jobs(arguments) => jobs::run(&config, arguments, output).await,
            Command::Cancel(arguments) => jobs::cancel(&config, arguments, output).await,
            Command::Images => images::run(&engine(&config).await?, &config, output).await,
            Command::Install(arguments) => {
                install_command::install(&config, arguments, output).await
            }
            Command::Uninstall(arguments) => {
                install_command::uninstall(&config, arguments, output).await
            }
            Command::Remove(mut arguments) => {
                let Some(root) = config.local.clone() else {
                    bail!(
                        "`resnap remove` is for the local engine (--engine local); \
                         `crictl rmi` and `ctr images rm` remove images of containerd"
                    );
                };
                local_images::rename(&mut config, &mut arguments.images)?;
                remove::run(&engine(&config).await?, &root, arguments, output).await
            }
            Command::Snapshotters => snapshotters::run(&engine(&config).await?, output).await,
            // They need no configuration and returned above.
            Command::Completions { .. } | Command::Man => Ok(ExitStatus::Done),
        }
    })
}
