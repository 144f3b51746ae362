// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Values with their sources.

use std::fmt;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment,
    File,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "config file",
            Self::Default => "default",
        })
    }
}

/// A value and its source.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

impl<T> Setting<T> {
    /// Returns the value of the file if it has one, and the default otherwise.
    pub(super) fn of_file(file: Option<T>, default: T) -> Self {
        let source = file.as_ref().map_or(Source::Default, |_| Source::File);
        let value = file.unwrap_or(default);
        Self { value, source }
    }
}

/// The flags and environment variables that were given.
pub(super) struct Overrides<'a>(pub(super) &'a ArgMatches);

impl Overrides<'_> {
    /// Returns the value with the highest precedence: `given` as the argument `id`, then that of the file,
    /// then the default.
    pub(super) fn resolve<T>(
        &self,
        id: &str,
        given: Option<T>,
        file: Option<T>,
        default: T,
    ) -> Setting<T> {
        match given {
            Some(value) => Setting {
                value,
                source: self.source(id),
            },
            None => Setting::of_file(file, default),
        }
    }

    fn source(&self, id: &str) -> Source {
        let mut matches = Some(self.0);
        let mut source = Source::Flag;
        while let Some(level) = matches {
            // The matches of a command do not include the arguments of its subcommands.
            if matches!(level.try_contains_id(id), Ok(true)) {
                source = match level.value_source(id) {
                    Some(ValueSource::EnvVariable) => Source::Environment,
                    _ => Source::Flag,
                };
            }
            matches = level.subcommand().map(|(_, level)| level);
        }
        source
    }
}
