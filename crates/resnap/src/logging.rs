// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Logs on standard error.

use std::env;
use std::io::{self, IsTerminal as _};

use anyhow::{Result, bail};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// The environment variable that selects what is logged.
const FILTER: &str = "RESNAP_LOG";

/// The environment variable that selects the format.
const FORMAT: &str = "RESNAP_LOG_FORMAT";

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One line of text per event.
    Text,
    /// One JSON object per event and line, for log collectors.
    Json,
}

impl LogFormat {
    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => bail!("{FORMAT} is {other:?}; the formats are text and json"),
        }
    }
}

/// Starts logging to standard error, and returns the format.
///
/// # Errors
/// An unknown format. Logs are written as text then.
pub(crate) fn init() -> Result<LogFormat> {
    let wanted = env::var(FILTER).unwrap_or_default();
    let filter = EnvFilter::try_new(directives(&wanted)).unwrap_or_else(|_| EnvFilter::new("warn"));
    let format = LogFormat::parse(&env::var(FORMAT).unwrap_or_default());
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        Ok(LogFormat::Json) => lines.json().with_ansi(false).boxed(),
        _ => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    let subscriber = registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let (subscriber, format) = {
        let (traces, format) = match crate::traces::layer() {
            Ok(traces) => (traces, format),
            Err(error) => (None, format.and(Err(error))),
        };
        (subscriber.with(traces), format)
    };
    subscriber.init();
    format
}

/// Returns the directives of the filter. A level alone applies to resnap's own crates; other crates log
/// warnings only, unless the filter names them.
fn directives(wanted: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_our_own_crates() {
        for (wanted, expected) in [
            ("", "warn"),
            ("info", "warn,resnap=info"),
            ("error", "warn,error"),
            ("debug,h2=info", "warn,resnap=debug,h2=info"),
            ("resnap_cri_proxy=trace", "warn,resnap_cri_proxy=trace"),
        ] {
            assert_eq!(directives(wanted), expected);
            assert!(EnvFilter::try_new(expected).is_ok());
        }
    }

    #[test]
    fn an_unknown_format_names_the_formats() {
        assert_eq!(LogFormat::parse("").unwrap(), LogFormat::Text);
        assert_eq!(LogFormat::parse("text").unwrap(), LogFormat::Text);
        assert_eq!(LogFormat::parse("json").unwrap(), LogFormat::Json);
        let error = LogFormat::parse("JSON").unwrap_err().to_string();
        assert_eq!(
            error,
            "RESNAP_LOG_FORMAT is \"JSON\"; the formats are text and json"
        );
    }
}
