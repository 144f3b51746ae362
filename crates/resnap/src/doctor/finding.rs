// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The findings of `resnap doctor`. Programs know them by their IDs, which do not change.

use serde::Serialize;

use super::fix::Fix;
use crate::output::printable;

/// The urgency of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Something fails, or has the wrong content.
    Fault,
    /// Something can fail, or wastes what the node has.
    Warning,
    /// Nothing has to be done.
    Note,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A finding.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    pub(crate) subject: String,
    pub(crate) why: String,
    /// The next step, with the lines to add if there are any.
    pub(crate) way_out: String,
    /// The fix that `--fix` runs, if one is safe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<Fix>,
}

/// A check that could not look.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Unknown {
    /// The beginning of the IDs of the findings that there may be.
    pub(crate) id: &'static str,
    pub(crate) why: String,
}

/// The parts of a node, as IDs begin with them, in the order in which they are mended: a way out may need that those
/// before it are well.
const PARTS: [&str; 8] = [
    "kernel",
    "tools",
    "containerd",
    "daemon",
    "kubelet",
    "images",
    "snapshots",
    "orphans",
];

/// The results of all checks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    pub(crate) findings: Vec<Finding>,
    pub(crate) unknown: Vec<Unknown>,
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        id: &'static str,
        subject: impl Into<String>,
        why: impl Into<String>,
        way_out: impl Into<String>,
    ) {
        self.findings.push(Finding {
            id,
            severity,
            subject: subject.into(),
            why: why.into(),
            way_out: way_out.into(),
            fix: None,
        });
    }

    /// Adds what `--fix` does about the last finding.
    pub(crate) fn with_fix(&mut self, fix: Fix) {
        if let Some(last) = self.findings.last_mut() {
            last.fix = Some(fix);
        }
    }

    pub(crate) fn unknown(&mut self, id: &'static str, why: impl Into<String>) {
        self.unknown.push(Unknown {
            id,
            why: why.into(),
        });
    }

    /// Puts first what has to be done first, and notes last: by part, and within a part by urgency.
    pub(crate) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| {
            let (part, _) = finding.id.split_once('.').unwrap_or_default();
            let place = PARTS.iter().position(|other| *other == part);
            let is_note = finding.severity == Severity::Note;
            (is_note, place, finding.severity)
        });
    }
}

/// Returns a word for a command of a way out. Names come from images and other clients: they are one word of one line
/// for a shell, too.
pub(crate) fn quoted(name: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "._/:@+-".contains(char);
    match !name.is_empty() && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", printable(name).replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thing_to_do_is_the_first() {
        use Severity::{Fault, Note, Warning};
        let order = [
            ("kernel.erofs", Fault),
            ("containerd.runtime-platforms", Fault),
            ("containerd.config-changed", Warning),
            ("daemon.config-changed", Warning),
            ("kubelet.endpoint", Fault),
            ("images.unlabelled", Fault),
            ("images.steered", Warning),
            ("orphans.leases", Warning),
            ("containerd.discard", Note),
            ("orphans.ingests", Note),
        ];
        let mut findings = Findings::default();
        for (id, severity) in order.into_iter().rev() {
            findings.add(severity, id, "", "", "");
        }
        findings.sort();
        let sorted = findings.findings.iter();
        let sorted: Vec<_> = sorted.map(|found| (found.id, found.severity)).collect();
        assert_eq!(sorted, order);
    }

    #[test]
    fn names_are_one_word_of_one_line() {
        for (name, expected) in [
            ("docker.io/library/web:1", "docker.io/library/web:1"),
            ("web@sha256:0a", "web@sha256:0a"),
            ("", "''"),
            ("web\nfault  $(id)", r"'web\nfault  $(id)'"),
            ("it's; `id`", r"'it'\''s; `id`'"),
            ("\u{202e}\u{1b}[2J", r"'\u{202e}\u{1b}[2J'"),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }
}
