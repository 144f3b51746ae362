// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A table's medians as bars, and as curves if they are of several numbers of things.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::table::{Row, milliseconds};

const LINE: usize = 22;
const NAMES: f64 = 400.0;
const BARS: f64 = 480.0;

/// The size of the area of curves, and the colours of the curves.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
const COLOURS: [&str; 8] = [
    "#2a9d5c", "#8c96a3", "#d9b44a", "#c0504d", "#4a7fb5", "#7d5ba6", "#333333", "#66b2b2",
];

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

/// Returns the medians by the number of things, both axes logarithmic; `None` if no row has one. Rows of one
/// curve differ in the last part of their names.
pub(crate) fn curves(rows: &[Row]) -> Option<Markup> {
    let mut curves: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        if let (Some(count), Some(median)) = (row.count, row.median) {
            let name = row
                .variant
                .rsplit_once(": ")
                .map_or(&*row.variant, |(name, _)| name);
            curves.entry(name).or_default().push((count as f64, median));
        }
    }
    let points = || curves.values().flatten().copied();
    let x = Axis::over(points().map(|(count, _)| count), 60.0, WIDTH)?;
    let y = Axis::over(points().map(|(_, median)| median), 20.0 + HEIGHT, -HEIGHT)?;
    let place = |&(count, median): &(f64, f64)| format!("{:.1},{:.1}", x.at(count), y.at(median));
    let (bottom, right) = (y.at(y.least), x.at(x.most));
    Some(html! {
        svg xmlns="http://www.w3.org/2000/svg" width="1000" height="340" viewBox="0 0 1000 340"
            font-family="sans-serif" font-size="12" {
            @for tick in y.ticks() {
                line x1="60" x2=(right) y1=(y.at(tick)) y2=(y.at(tick)) stroke="#ddd" {}
                text x="54" y=(y.at(tick) + 4.0) text-anchor="end" { (milliseconds(tick)) }
            }
            @for tick in x.ticks() {
                text x=(x.at(tick)) y=(bottom + 18.0) text-anchor="middle" { (tick) }
            }
            @for (number, (name, points)) in curves.iter().enumerate() {
                @let colour = COLOURS[number % COLOURS.len()];
                @let line = points.iter().map(place).collect::<Vec<_>>().join(" ");
                polyline points=(line) fill="none" stroke=(colour) stroke-width="2" {}
                rect x=(right + 40.0) y=(20 + LINE * number) width="14" height="4" fill=(colour) {}
                text x=(right + 62.0) y=(26 + LINE * number) { (name) }
            }
        }
    })
}

/// A logarithmic axis over whole powers of ten.
struct Axis {
    least: f64,
    most: f64,
    start: f64,
    length: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, start: f64, length: f64) -> Option<Self> {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        (least > 0.0 && least < most).then(|| Self {
            least: 10_f64.powf(least.log10().floor()),
            most: 10_f64.powf(most.log10().ceil()),
            start,
            length,
        })
    }

    fn at(&self, value: f64) -> f64 {
        let span = self.most.log10() - self.least.log10();
        self.start + self.length * (value.log10() - self.least.log10()) / span
    }

    fn ticks(&self) -> Vec<f64> {
        let powers = std::iter::successors(Some(self.least), |tick| Some(tick * 10.0));
        powers
            .take_while(|tick| *tick <= self.most * 1.01)
            .collect()
    }
}
