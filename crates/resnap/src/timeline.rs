// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A drawing of a job: the stages of each layer over time.

use std::fmt::Write as _;

use resnap_core::Stage;
use resnap_unpacker::{LayerReport, Report, StageTime};

use crate::output::{bytes, short};

/// Sizes in the units of the drawing.
const NAMES: f64 = 190.0;
const TIME: f64 = 900.0;
const ROW: f64 = 46.0;
const TOP: f64 = 64.0;
const MARGIN: f64 = 16.0;

/// The stages with their offset and height in a row, colour and name. Concurrent stages are drawn one
/// above the other.
const STAGES: [(Stage, f64, f64, &str, &str); 8] = [
    (Stage::Wait, 17.0, 6.0, "#d5d5d5", "wait"),
    (Stage::Fetch, 3.0, 39.0, "#b07aa1", "fetch"),
    (Stage::Read, 3.0, 9.0, "#4e79a7", "read"),
    (Stage::Inflate, 13.0, 9.0, "#f28e2b", "inflate"),
    (Stage::Hash, 23.0, 9.0, "#76b7b2", "hash"),
    (Stage::Write, 33.0, 9.0, "#59a14f", "write"),
    (Stage::Place, 3.0, 39.0, "#edc948", "place"),
    (Stage::Commit, 3.0, 39.0, "#e15759", "commit"),
];

/// Returns the drawing as an SVG document with one row for each layer, the base first. A stage is a pale
/// bar from its start to its end, filled in proportion to the time it was working.
pub(crate) fn svg(report: &Report) -> String {
    let rows = report.layers.len().max(1) as f64;
    let (width, height) = (NAMES + TIME + 2.0 * MARGIN, TOP + rows * ROW + 40.0);
    let seconds = report.seconds.max(f64::MIN_POSITIVE);
    let mut out = String::new();
    let title = format!(
        "{} on {}: {:.2} s",
        report.reference.as_ref().unwrap_or(&report.image),
        report.snapshotter,
        report.seconds
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}</text>",
        escaped(&title)
    );
    for (number, (_, _, _, colour, name)) in STAGES.iter().enumerate() {
        let x = NAMES + number as f64 * 90.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"48\">{name}</text>",
            x + 17.0
        );
    }
    let at = |time: f64| NAMES + time.clamp(0.0, seconds) / seconds * TIME;
    let bottom = TOP + rows * ROW;
    for tenth in 0..=10 {
        let time = seconds * f64::from(tenth) / 10.0;
        let x = at(time);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#eeeeee\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">{time:.2} s</text>",
            bottom + 18.0
        );
    }
    for (index, layer) in report.layers.iter().enumerate() {
        let y = TOP + index as f64 * ROW;
        row(&mut out, index + 1, layer, y, at);
    }
    out.push_str("</svg>\n");
    out
}

fn row(out: &mut String, number: usize, layer: &LayerReport, y: f64, at: impl Fn(f64) -> f64) {
    let digest = short(layer.digest.as_str());
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{}\">{number} {digest}</text><text x=\"{MARGIN}\" y=\"{}\" fill=\"#666666\">{}, {:?}</text>",
        y + 19.0,
        y + 35.0,
        bytes(layer.bytes),
        layer.outcome,
    );
    for (stage, top, height, colour, name) in STAGES {
        for time in layer.stages.iter().filter(|time| time.stage == stage) {
            let StageTime {
                start, end, busy, ..
            } = *time;
            let (x, width) = (at(start), (at(end) - at(start)).max(0.5));
            let whole = (end - start).max(f64::MIN_POSITIVE);
            let filled = width * (busy / whole).clamp(0.0, 1.0);
            let tip = format!("{name}: {start:.3} to {end:.3} s, {busy:.3} s at work");
            let _ = writeln!(
                out,
                "<g><title>{tip}</title><rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\" fill-opacity=\"0.3\"/><rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{filled:.1}\" height=\"{height}\" fill=\"{colour}\"/></g>",
                y + top,
                y + top
            );
        }
    }
}

/// Escapes a text for XML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // XML cannot represent control characters.
            char if char.is_control() => escaped.push('\u{fffd}'),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use resnap_core::{ChainId, DiffId, Digest};
    use resnap_unpacker::LayerOutcome;

    use super::*;

    #[test]
    fn each_stage_is_a_bar() {
        let digest = Digest::sha256(b"layer");
        let mut layer = LayerReport::new(
            digest.clone(),
            DiffId(digest.clone()),
            ChainId::from_trusted(digest.clone()),
            LayerOutcome::Applied,
        );
        layer.stages = vec![
            StageTime::new(Stage::Read, 0.0, 1.0, 0.5),
            StageTime::new(Stage::Commit, 1.0, 2.0, 1.0),
        ];
        let mut report = Report::new(
            "<web>&\u{1b}".to_owned(),
            "erofs".to_owned(),
            "linux/amd64".to_owned(),
            digest.clone(),
            digest,
        );
        report.layers = vec![layer];
        report.seconds = 2.0;
        let picture = svg(&report);
        assert!(picture.contains("&lt;web&gt;&amp;\u{fffd} on erofs"));
        assert!(picture.contains("read: 0.000 to 1.000 s, 0.500 s at work"));
        assert!(picture.contains("width=\"450.0\"") && picture.contains("width=\"225.0\""));
        assert_eq!(picture.matches("<title>").count(), 2);
    }
}
