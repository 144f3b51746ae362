// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A table's medians as bars.

use maud::{Markup, html};

use crate::table::{Row, milliseconds};

const LINE: usize = 22;
const NAMES: f64 = 400.0;
const BARS: f64 = 480.0;

/// Returns a picture; the longest bar is the slowest row's.
pub(crate) fn bars(rows: &[Row]) -> Markup {
    let timed = || rows.iter().filter_map(|row| Some((row, row.median?)));
    let longest = timed().map(|(_, median)| median).fold(0.0, f64::max);
    let height = LINE * (timed().count() + 1);
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width="1000" height=(height)
            viewBox={ "0 0 1000 " (height) } font-family="sans-serif" font-size="12" {
            @for (place, (row, median)) in timed().enumerate() {
                (bar(LINE * place + LINE / 2, row, median, BARS * (median / longest).max(0.0)))
            }
        }
    }
}

fn bar(top: usize, row: &Row, median: f64, width: f64) -> Markup {
    let fill = match row.variant.rsplit(": ").next() {
        Some(name) if name.starts_with("resnap") => "#2a9d5c",
        Some(name) if name.starts_with("containerd") => "#8c96a3",
        _ => "#d9b44a",
    };
    let text = top + 13;
    html! {
        text x=(NAMES - 8.0) y=(text) text-anchor="end" { (row.variant) }
        rect x=(NAMES) y=(top) width=(format!("{width:.1}")) height=(LINE - 6) fill=(fill) {}
        text x=(format!("{:.1}", NAMES + width + 6.0)) y=(text) { (milliseconds(median)) }
    }
}
