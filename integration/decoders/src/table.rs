// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The results as a table.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use crate::decoder::DECODERS;
use crate::input::Input;
use crate::measure::Sample;

const COLUMNS: [&str; 9] = [
    "decoder",
    "input",
    "wall",
    "CPU",
    "ratio of CPU",
    "peak RSS",
    "blob and output in memory",
    "language",
    "needs to build",
];

/// The measurements of a decoder with an input.
pub(crate) struct Row<'a> {
    /// The index of the decoder.
    pub(crate) decoder: usize,
    pub(crate) input: &'a Input,
    pub(crate) samples: Vec<Sample>,
}

impl<'a> Row<'a> {
    /// Returns a row for every decoder with every input.
    pub(crate) fn all(inputs: &'a [Input]) -> Vec<Self> {
        let inputs = inputs.iter();
        let rows = inputs.flat_map(|input| {
            (0..DECODERS.len()).map(move |decoder| Self {
                decoder,
                input,
                samples: Vec::new(),
            })
        });
        rows.collect()
    }

    fn median(&self, figure: impl Fn(&Sample) -> f64) -> Result<f64> {
        let mut figures: Vec<f64> = self.samples.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let median = figures.get(figures.len() / 2).copied();
        median.context("nothing was measured")
    }

    fn cpu(&self) -> Result<f64> {
        self.median(|sample| sample.cpu)
    }

    /// Returns the texts of the [`COLUMNS`]. `own` is the CPU time of resnap's decoder with the input.
    fn cells(&self, own: f64) -> Result<[String; COLUMNS.len()]> {
        let decoder = DECODERS.get(self.decoder).context("no such decoder")?;
        let cpu = self.cpu()?;
        Ok([
            decoder.name()?,
            self.input.name.to_owned(),
            format!("{:.2} s", self.median(|sample| sample.wall)?),
            format!("{cpu:.2} s"),
            format!("{:.2}", cpu / own),
            format!(
                "{:.1} MiB",
                self.median(|sample| sample.peak as f64)? / 1024.0
            ),
            if decoder.is_whole { "yes" } else { "no" }.to_owned(),
            decoder.language.to_owned(),
            decoder.needs.to_owned(),
        ])
    }
}

/// Returns the table, in Markdown. The rows may be in any order.
pub(crate) fn text(mut rows: Vec<Row<'_>>) -> Result<String> {
    rows.sort_by_key(|row| (row.input.name, row.decoder));
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    let mut own = f64::NAN;
    for row in &rows {
        // Resnap's decoder is the first of each input.
        if row.decoder == 0 {
            own = row.cpu()?;
        }
        lines.push(row.cells(own)?);
    }
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(|column| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(String::len).max().unwrap_or_default()
    });
    lines.insert(1, widths.map(|width| "-".repeat(width)));
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(widths) {
            write!(text, "| {cell:<width$} ")?;
        }
        text.push_str("|\n");
    }
    Ok(text)
}
