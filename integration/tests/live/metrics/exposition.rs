// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of OpenMetrics text that forgives nothing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// The samples by their name with labels, as they are written.
pub(crate) type Samples = BTreeMap<String, f64>;

/// A metric family while it is read.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    /// The count and the bound of the last bucket.
    bucket: Option<(f64, f64)>,
}

/// Reads all samples.
///
/// # Errors
/// The first line that is not as the format has it.
pub(crate) fn read(text: &str) -> Result<Samples> {
    let body = text
        .strip_suffix("# EOF\n")
        .context("no # EOF at the end")?;
    let (mut samples, mut families) = (Samples::new(), BTreeSet::new());
    let mut family = Family::default();
    for line in body.lines() {
        let about = || format!("line {line:?}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let mut word = || words.next().filter(|word| !word.is_empty());
            let (keyword, name, rest) = (word(), word(), word());
            let (Some(keyword), Some(name), Some(rest)) = (keyword, name, rest) else {
                bail!("too few words in {line:?}");
            };
            ensure!(is_name(name), "no name in {line:?}");
            if name != family.name {
                ensure!(families.insert(name), "{name} again: {line:?}");
                family = Family {
                    name,
                    ..Family::default()
                };
            }
            match keyword {
                "HELP" => ensure!(rest.ends_with('.'), "{line:?}"),
                "TYPE" => family.kind = rest,
                "UNIT" => ensure!(name.ends_with(&format!("_{rest}")), "{line:?}"),
                _ => bail!("an unknown comment: {line:?}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').with_context(about)?;
        let value: f64 = value.parse().with_context(about)?;
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = read_labels(labels).with_context(about)?;
        family.check(name, &labels, value).with_context(about)?;
        ensure!(
            samples.insert(sample.to_owned(), value).is_none(),
            "twice: {line:?}"
        );
    }
    Ok(samples)
}

impl Family<'_> {
    fn check(&mut self, sample: &str, labels: &BTreeMap<&str, &str>, value: f64) -> Result<()> {
        let suffix = sample.strip_prefix(self.name);
        let suffix = suffix.with_context(|| format!("not of the family {}", self.name))?;
        match (self.kind, suffix) {
            ("gauge", "") => {}
            ("counter", "_total") => ensure!(value >= 0.0 && value.fract() == 0.0),
            ("info", "_info") => ensure!(value == 1.0 && !labels.is_empty()),
            ("histogram", "_sum") => ensure!(self.bucket.is_none()),
            ("histogram", "_count") => self.bucket = Some((value, f64::NEG_INFINITY)),
            ("histogram", "_bucket") => {
                let bound: f64 = labels.get("le").context("no le")?.parse()?;
                let (count, below) = self.bucket.context("buckets before the count")?;
                if below.is_finite() {
                    ensure!(bound > below, "the bounds do not rise");
                } else if below == f64::INFINITY {
                    bail!("a bucket after the last");
                }
                ensure!(value <= count, "more in a bucket than in all");
                if bound == f64::INFINITY {
                    ensure!(value == count, "the last bucket has not all");
                    self.bucket = None;
                } else {
                    self.bucket = Some((count, bound));
                }
            }
            (kind, suffix) => bail!("{suffix:?} in a {kind:?}"),
        }
        Ok(())
    }
}

/// Labels up to and with the closing brace. Ours need no escapes, and have none.
fn read_labels(text: &str) -> Result<BTreeMap<&str, &str>> {
    let text = text.strip_suffix('}').context("no closing brace")?;
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let mut labels = BTreeMap::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').context("no =")?;
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        let value = value.context("no quotes")?;
        ensure!(is_name(name) && !value.contains(['"', '\\']), "{pair}");
        ensure!(labels.insert(name, value).is_none(), "{name} twice");
    }
    Ok(labels)
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && name.starts_with(|c: char| !c.is_ascii_digit())
}
