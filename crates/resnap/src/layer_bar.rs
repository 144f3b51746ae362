// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The progress of reading an image, on standard error, if that is a terminal.

use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use resnap_core::Descriptor;
use resnap_publish::Progress;

/// A bar of the bytes that were read, of all layers.
struct LayerBar {
    bar: ProgressBar,
    read: Mutex<Vec<u64>>,
}

impl LayerBar {
    fn new() -> Self {
        let bar = match io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let template = "[{bar:30}] {decimal_bytes}/{decimal_total_bytes} {elapsed}";
        if let Ok(style) = ProgressStyle::default_bar().template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            read: Mutex::default(),
        }
    }
}

/// Shows the bar during work that gets it. The work may be dropped before its end.
pub(crate) async fn shown<T, W: Future<Output = T>>(
    work: impl FnOnce(Arc<dyn Progress>) -> W,
) -> T {
    let bar = Arc::new(LayerBar::new());
    let _cleared = ClearOnDrop(Arc::clone(&bar));
    work(bar).await
}

/// Removes the bar on drop.
struct ClearOnDrop(Arc<LayerBar>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.bar.finish_and_clear();
    }
}

impl Progress for LayerBar {
    fn begin(&self, layers: &[Descriptor]) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = vec![0; layers.len()];
        let total = layers.iter().map(|layer| layer.size);
        self.bar.set_length(total.fold(0, u64::saturating_add));
    }

    fn read(&self, index: usize, bytes: u64) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.get_mut(index) {
            *read = bytes;
        }
        self.bar.set_position(read.iter().sum());
    }
}
