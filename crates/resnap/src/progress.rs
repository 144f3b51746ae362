// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Progress on standard error: bars on a terminal, lines elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use resnap_unpacker::{Event, Phase, Progress as JobProgress};

use crate::output::{bytes, printable, short};

/// The progress of several images.
pub(crate) struct Progress {
    terminal: Option<MultiProgress>,
    images: Vec<Option<Bars>>,
}

/// The progress bars of one image.
struct Bars {
    /// The bytes that were read, of all layers.
    total: ProgressBar,
    /// The current layer.
    layer: ProgressBar,
    progress: JobProgress,
}

impl Progress {
    pub(crate) fn new(images: usize) -> Self {
        let terminal = io::stderr().is_terminal().then(MultiProgress::new);
        let bars = |_| terminal.as_ref().map(Bars::new);
        Self {
            images: (0..images).map(bars).collect(),
            terminal,
        }
    }

    /// Shows an event of the image with this number.
    pub(crate) fn show(&mut self, number: usize, event: &Event) {
        let line = line(event, self.images.len() > 1);
        let line = printable(&line).into_owned();
        let (Some(terminal), Some(Some(bars))) = (&self.terminal, self.images.get_mut(number))
        else {
            let is_shown = match event.phase {
                Phase::Planned | Phase::Prepared | Phase::Progress => false,
                Phase::Fetching => event.read.is_none(),
                _ => true,
            };
            if is_shown {
                // Progress is optional; standard error may be closed.
                let _ = writeln!(io::stderr(), "{line}");
            }
            return;
        };
        bars.progress.record(event);
        bars.total.set_length(bars.progress.bytes());
        bars.total.set_position(bars.progress.read_bytes());
        match event.phase {
            Phase::Planned | Phase::Progress => {}
            Phase::Fetching | Phase::Prepared | Phase::Applying | Phase::Waiting => {
                bars.layer.set_message(line)
            }
            _ => {
                // Progress is optional; the terminal may be gone.
                let _ = terminal.println(line);
            }
        }
        let prefix = format!("{} on {}", event.image, event.snapshotter);
        bars.total.set_prefix(printable(&prefix).into_owned());
    }

    /// Shows a line about all images.
    pub(crate) fn note(&self, line: &str) {
        let line = printable(line);
        // Progress is optional; the terminal may be gone, or standard error closed.
        let _ = match &self.terminal {
            Some(terminal) => terminal.println(line),
            None => writeln!(io::stderr(), "{line}"),
        };
    }

    /// Removes the bars of the image with this number.
    pub(crate) fn finish(&mut self, number: usize) {
        if let Some(bars) = self.images.get_mut(number).and_then(Option::take) {
            bars.layer.finish_and_clear();
            bars.total.finish_and_clear();
        }
    }
}

impl Bars {
    fn new(terminal: &MultiProgress) -> Self {
        let spinner = style(ProgressStyle::default_spinner(), "  {spinner} {msg}");
        let bar = style(
            ProgressStyle::default_bar(),
            "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {elapsed}",
        );
        let layer = terminal.add(ProgressBar::new_spinner().with_style(spinner));
        layer.enable_steady_tick(Duration::from_millis(120));
        let total = terminal.add(ProgressBar::new(0).with_style(bar));
        Self {
            total,
            layer,
            progress: JobProgress::default(),
        }
    }
}

fn style(default: ProgressStyle, template: &str) -> ProgressStyle {
    let fallback = default.clone();
    default.template(template).unwrap_or(fallback)
}

fn line(event: &Event, with_image: bool) -> String {
    let image = if with_image {
        format!("{}: ", event.image)
    } else {
        String::new()
    };
    let waits_for = event.waits_for.as_ref();
    format!(
        "{image}layer {:>width$}/{} {}: {}{} ({}, {:.1} s)",
        event.layer,
        event.layers,
        short(event.digest.as_str()),
        word(event.phase),
        waits_for.map_or_else(String::new, |owner| format!(" {owner}")),
        bytes(event.bytes),
        event.seconds,
        width = event.layers.to_string().len(),
    )
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Planned => "planned",
        Phase::Existed => "already there",
        Phase::Waiting => "waiting for",
        Phase::Fetching => "fetching",
        Phase::Prepared => "prepared",
        Phase::Applying => "unpacking",
        Phase::Committed => "unpacked",
        Phase::Copied => "copied from another snapshotter",
        Phase::Staged => "staged",
        Phase::Remote => "remote, nothing to unpack",
        Phase::Joined => "unpacked by another process",
        Phase::Failed => "failed",
        _ => "…",
    }
}
