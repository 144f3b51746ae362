// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A table's medians as bars.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use crate::table::{Row, dir};

const LINE: usize = 22;
const NAMES: f64 = 300.0;
const BARS: f64 = 480.0;

/// Writes `<name>.svg`; the longest bar is the slowest row's.
pub(crate) fn write(name: &str, rows: &[Row]) -> Result<()> {
    let timed = || rows.iter().filter_map(|row| Some((row, row.median?)));
    let longest = timed().map(|(_, median)| median).fold(1.0, f64::max);
    let height = LINE * (timed().count() + 1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"880\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (place, (row, median)) in timed().enumerate() {
        let (top, width) = (LINE * place + LINE / 2, BARS * median / longest);
        let fill = match row.variant.rsplit(": ").next() {
            Some("resnap") => "#2a9d5c",
            Some("containerd") => "#8c96a3",
            _ => "#d9b44a",
        };
        let (text, bar, end) = (top + 13, LINE - 6, NAMES + width + 6.0);
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top}\" width=\"{width:.1}\" height=\"{bar}\" fill=\"{fill}\"/>\
             <text x=\"{end:.1}\" y=\"{text}\">{:.2} s</text>",
            NAMES - 8.0,
            row.variant,
            median / 1e3,
        )?;
    }
    svg += "</svg>\n";
    let path = dir()?.join(format!("{name}.svg"));
    fs::write(&path, svg).with_context(|| format!("write {path:?}"))
}
