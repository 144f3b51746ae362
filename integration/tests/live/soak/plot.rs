// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The figures as a page.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use maud::{DOCTYPE, Markup, html};

use super::sample::{FIGURES, Figure, Sample};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

/// Writes the page.
pub(super) fn write(path: &Path, about: &str, samples: &[Sample]) -> Result<()> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { "resnap: soak" } }
            body style="font: 14px sans-serif" {
                h1 { "resnap: soak" }
                p { (about) }
                @for figure in FIGURES { (line(figure, samples)) }
            }
        }
    };
    fs::write(path, page.into_string()).with_context(|| format!("write {path:?}"))
}

fn line((name, figure, _): Figure, samples: &[Sample]) -> Markup {
    let highest = samples.iter().map(figure).max().unwrap_or(0).max(1);
    let end = samples
        .last()
        .map_or(1.0, |sample| sample.at.as_secs_f64().max(1.0));
    let points: Vec<String> = samples
        .iter()
        .map(|sample| {
            let x = WIDTH * sample.at.as_secs_f64() / end;
            let y = HEIGHT * (1.0 - figure(sample) as f64 / highest as f64);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    html! {
        h2 { (name) ": at most " (highest) ", in " (format!("{end:.0}")) " s" }
        svg xmlns="http://www.w3.org/2000/svg" width=(WIDTH) height=(HEIGHT) {
            polyline points=(points.join(" ")) fill="none" stroke="#2a9d5c" stroke-width="2" {}
        }
    }
}
