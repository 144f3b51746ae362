// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Completions and the manual page, generated from the arguments.

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Arguments;
use crate::exit_status::ExitStatus;
use crate::output::Output;

pub(crate) fn completions(shell: Shell, output: &mut Output) -> Result<ExitStatus> {
    // The generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "resnap", &mut script);
    print(&script, output)
}

fn print(text: &[u8], output: &mut Output) -> Result<ExitStatus> {
    let text = String::from_utf8_lossy(text);
    output.verbatim(text.trim_end())?;
    Ok(ExitStatus::Done)
}

/// Prints the manual pages of `resnap` and of its commands.
pub(crate) fn man(output: &mut Output) -> Result<ExitStatus> {
    let mut page = Vec::new();
    let mut command = Arguments::command();
    command.build();
    Man::new(command.clone()).render(&mut page)?;
    for subcommand in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        Man::new(subcommand.clone()).render(&mut page)?;
    }
    print(&page, output)
}
