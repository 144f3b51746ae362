// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Logs of containers as the CRI writes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Returns the text of a log in the CRI's format, `TIME STREAM TAG TEXT`, in which a
/// tag of `P` says that the line goes on.
pub(super) fn read_log(path: &Path) -> Result<String> {
    let log = fs::read(path).with_context(|| format!("read the container's log {path:?}"))?;
    Ok(log_text(&String::from_utf8_lossy(&log)))
}

fn log_text(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let tag = fields.next();
        text += fields.next().unwrap_or("");
        if tag != Some("P") {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::log_text;

    #[test]
    fn partial_lines_are_joined() {
        let log = "2026-01-01T00:00:00Z stdout P one \n\
            2026-01-01T00:00:00Z stdout F two\n\
            2026-01-01T00:00:00Z stderr F \n";
        assert_eq!(log_text(log), "one two\n\n");
    }
}
