// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Completions and the manual page, from the arguments themselves.

use std::io;

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Outcome;
use crate::args::Arguments;

pub(crate) fn completions(shell: Shell) -> Result<Outcome> {
    clap_complete::generate(
        shell,
        &mut Arguments::command(),
        "resnap",
        &mut io::stdout(),
    );
    Ok(Outcome::Done)
}

/// The page of `resnap` and those of its commands, one after the other.
pub(crate) fn man() -> Result<Outcome> {
    let mut command = Arguments::command();
    command.build();
    Man::new(command.clone()).render(&mut io::stdout())?;
    for subcommand in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        Man::new(subcommand.clone()).render(&mut io::stdout())?;
    }
    Ok(Outcome::Done)
}
