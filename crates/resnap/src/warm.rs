// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images made ready in advance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use bytesize::ByteSize;
use futures::StreamExt as _;
use resnap_core::{Digest, ManifestPreference};
use resnap_unpacker::{Engine, Event, Job, Reader, Report, Request, UnpackError};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use wildmatch::WildMatch;

use crate::documents::{IMAGES_AT_ONCE, Overview};

/// The space that must stay free on a file system. kubelet watches only that of the default snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Floor {
    Percent(u8),
    Bytes(ByteSize),
}

impl Default for Floor {
    /// Returns one and a half times the threshold at which kubelet evicts pods.
    fn default() -> Self {
        Self::Percent(15)
    }
}

impl FromStr for Floor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent
                .trim()
                .parse()
                .ok()
                .filter(|percent| *percent <= 100);
            return Ok(Self::Percent(percent.with_context(|| {
                format!("{text:?} is not a percentage, such as 10%")
            })?));
        }
        match text.parse() {
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(_) => {
                bail!("{text:?} is neither a percentage, such as 10%, nor a size, such as 20GiB")
            }
        }
    }
}

impl TryFrom<String> for Floor {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl Floor {
    fn bytes_of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes.as_u64(),
        }
    }
}

/// The outcome for one image on one snapshotter.
#[derive(Debug)]
pub(crate) enum Warmed {
    /// It was ready.
    Ready,
    /// It is ready now.
    Unpacked(Report),
    /// It would be unpacked.
    Would,
    /// Too little space is free.
    NoRoom {
        /// Bytes that are free.
        free: u64,
        /// Bytes that stay free.
        floor: u64,
    },
    /// The image has nothing for this machine or snapshotter.
    Skipped(UnpackError),
}

/// Returns whether an error means that the image has nothing for this machine and snapshotter, so that
/// retries are useless.
fn is_permanent(error: &UnpackError) -> bool {
    matches!(
        error,
        UnpackError::NoManifest { .. }
            | UnpackError::NotAnImage { .. }
            | UnpackError::Unsupported { .. }
            | UnpackError::LayerNotTaken { .. }
    )
}

/// Returns the images of `names` that match one of `patterns`, each once and by its best name: a
/// reference that can be pulled before a bare ID.
pub(crate) async fn choose(
    reader: &Reader,
    names: impl IntoIterator<Item = String>,
    patterns: &[WildMatch],
) -> Vec<String> {
    let mut names: Vec<String> = names
        .into_iter()
        .filter(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        .collect();
    names.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    let mut targets = BTreeSet::new();
    let mut chosen = Vec::new();
    for name in names {
        // The image may have been deleted meanwhile.
        let Ok(image) = reader.resolve(&name).await else {
            continue;
        };
        if targets.insert(image.target.digest.to_string()) {
            chosen.push(name);
        }
    }
    chosen
}

/// Returns the rank of a name: those with a tag go before those with a digest, and bare IDs last.
pub(crate) fn rank(name: &str) -> (bool, bool) {
    (name.parse::<Digest>().is_ok(), name.contains('@'))
}

/// An image that is to be ready on a snapshotter.
pub(crate) struct Target<'a> {
    pub(crate) image: &'a str,
    pub(crate) snapshotter: &'a str,
    pub(crate) floor: Floor,
    /// The preference of containerd, since the image is for its containers.
    pub(crate) pick: ManifestPreference,
}

impl Target<'_> {
    fn request(&self, reader: &Reader) -> Request {
        let need = reader.profiles().need(self.snapshotter);
        let mut request = Request::new(self.image).on(self.snapshotter);
        request.background = true;
        request.pick = self.pick;
        "prewarm".clone_into(&mut request.origin);
        request.repair = need.is_some_and(|need| need.repair_label.is_some());
        request
    }
}

/// Returns what is to be done for one image, and does nothing: it is unpacked, if there is enough space.
pub(crate) async fn decide(reader: &Reader, target: &Target<'_>) -> Result<Warmed, UnpackError> {
    let snapshotter = target.snapshotter;
    let plan = match reader.plan(&target.request(reader)).await {
        Err(error) if is_permanent(&error) => return Ok(Warmed::Skipped(error)),
        plan => plan?,
    };
    if reader.is_ready(&plan, snapshotter).await? && reader.is_kept(&plan, snapshotter).await? {
        return Ok(Warmed::Ready);
    }
    if let Some((free, total)) = space(reader, snapshotter).await? {
        let floor = target.floor.bytes_of(total);
        if free < floor {
            return Ok(Warmed::NoRoom { free, floor });
        }
    }
    Ok(Warmed::Would)
}

/// Returns what is to be done for each of `targets`, in their order, by one look at the whole namespace, which
/// takes as few calls for many images as for one.
pub(crate) async fn decide_all(
    overview: &Overview,
    targets: &[Target<'_>],
) -> Vec<Result<Warmed, UnpackError>> {
    let decisions: Vec<_> = targets
        .iter()
        .map(|target| decide(&overview.reader, target))
        .collect();
    let decided = futures::stream::iter(decisions)
        .buffered(IMAGES_AT_ONCE)
        .collect()
        .await;
    overview.keep_documents();
    decided
}

/// Makes one image ready if there is enough space, and passes events to `on_event`, until `stop` is cancelled.
pub(crate) async fn warm(
    engine: &Engine,
    target: &Target<'_>,
    stop: &CancellationToken,
    on_event: impl FnMut(Event),
) -> Result<Warmed, UnpackError> {
    let Some(decided) = stop.run_until_cancelled(decide(engine, target)).await else {
        return Err(UnpackError::Cancelled {
            image: target.image.to_owned(),
            snapshotter: target.snapshotter.to_owned(),
        });
    };
    match decided? {
        Warmed::Would => {}
        decided => return Ok(decided),
    }
    let job = engine.unpack(target.request(engine));
    follow(job, stop, on_event).await.map(Warmed::Unpacked)
}

/// Passes the events of a job to `on_event`, and returns its report. Once `stop` is cancelled, the job is
/// cancelled.
pub(crate) async fn follow(
    job: Job,
    stop: &CancellationToken,
    mut on_event: impl FnMut(Event),
) -> Result<Report, UnpackError> {
    let mut events = job.events();
    let mut cancelled = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => on_event(event),
                None => break,
            },
            () = stop.cancelled(), if !cancelled => {
                cancelled = true;
                job.canceller().cancel();
            }
        }
    }
    job.report().await
}

/// Returns the free and the total bytes of a snapshotter's file system; `None` if the snapshotter
/// reports no directory, or one that this machine does not have.
async fn space(reader: &Reader, snapshotter: &str) -> Result<Option<(u64, u64)>, UnpackError> {
    let all = reader.snapshotters().await?;
    let all: BTreeMap<_, _> = all.into_iter().map(|info| (info.name, info.root)).collect();
    let Some(Some(root)) = all.get(snapshotter) else {
        return Ok(None);
    };
    let there = rustix::fs::statvfs(root.as_str()).ok();
    Ok(there.map(|there| {
        let bytes = |blocks: u64| blocks.saturating_mul(there.f_frsize);
        (bytes(there.f_bavail), bytes(there.f_blocks))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_shares_or_sizes() {
        assert_eq!("10%".parse::<Floor>().unwrap().bytes_of(1000), 100);
        assert_eq!("1 KiB".parse::<Floor>().unwrap().bytes_of(5), 1024);
        assert_eq!("20GiB".parse::<Floor>().unwrap().bytes_of(5), 20 << 30);
        let no_percentage = "is not a percentage, such as 10%";
        let neither = "is neither a percentage, such as 10%, nor a size, such as 20GiB";
        for (wrong, reason) in [
            ("", neither),
            ("%", no_percentage),
            ("101%", no_percentage),
            ("-1%", no_percentage),
            ("much", neither),
        ] {
            let error = wrong.parse::<Floor>().unwrap_err();
            assert_eq!(error.to_string(), format!("{wrong:?} {reason}"));
        }
    }
}
