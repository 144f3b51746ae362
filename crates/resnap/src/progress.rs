// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Progress on standard error: bars on a terminal, lines elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use resnap_unpacker::{Event, Phase};

use crate::output::{bytes, short};

/// The progress of one image.
pub(crate) struct Progress {
    bars: Option<Bars>,
}

struct Bars {
    multi: MultiProgress,
    /// Bytes of the layers that are done, of all.
    total: ProgressBar,
    /// The layer at work.
    layer: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bars = io::stderr().is_terminal().then(|| {
            let multi = MultiProgress::new();
            let spinner = style(ProgressStyle::default_spinner(), "  {spinner} {msg}");
            let bar = style(
                ProgressStyle::default_bar(),
                "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {elapsed}",
            );
            let layer = multi.add(ProgressBar::new_spinner().with_style(spinner));
            layer.enable_steady_tick(Duration::from_millis(120));
            let total = multi.add(ProgressBar::new(0).with_style(bar));
            Bars {
                multi,
                total,
                layer,
            }
        });
        Self { bars }
    }

    pub(crate) fn show(&mut self, event: &Event) {
        let Some(bars) = &self.bars else {
            if event.phase != Phase::Planned && event.phase != Phase::Prepared {
                // Without standard error there is nobody to tell.
                let _ = writeln!(io::stderr(), "{}", line(event));
            }
            return;
        };
        match event.phase {
            Phase::Planned => bars.total.inc_length(event.bytes),
            Phase::Prepared | Phase::Applying => bars.layer.set_message(line(event)),
            _ => {
                bars.total.inc(event.bytes);
                // A terminal that is gone takes no lines.
                let _ = bars.multi.println(line(event));
            }
        }
        bars.total
            .set_prefix(format!("{} on {}", event.image, event.snapshotter));
    }

    pub(crate) fn finish(self) {
        if let Some(bars) = self.bars {
            bars.layer.finish_and_clear();
            bars.total.finish_and_clear();
        }
    }
}

fn style(default: ProgressStyle, template: &str) -> ProgressStyle {
    let fallback = default.clone();
    default.template(template).unwrap_or(fallback)
}

fn line(event: &Event) -> String {
    format!(
        "layer {:>width$}/{} {}: {} ({}, {:.1} s)",
        event.layer,
        event.layers,
        short(event.digest.as_str()),
        word(event.phase),
        bytes(event.bytes),
        event.seconds,
        width = event.layers.to_string().len(),
    )
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Planned => "planned",
        Phase::Existed => "already there",
        Phase::Prepared => "prepared",
        Phase::Applying => "unpacking",
        Phase::Committed => "unpacked",
        Phase::Staged => "staged",
        Phase::Remote => "remote, nothing to unpack",
        Phase::Joined => "made by somebody else meanwhile",
        Phase::Failed => "failed",
        _ => "…",
    }
}
