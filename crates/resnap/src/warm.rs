// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images made ready ahead, before anybody asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use bytesize::ByteSize;
use futures::StreamExt as _;
use resnap_core::{Digest, ManifestPreference};
use resnap_unpacker::{Engine, Event, Report, Request, UnpackError};
use serde::Deserialize;
use wildmatch::WildMatch;

/// How much of a file system is left free. kubelet watches that of the default snapshotter only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Floor {
    Percent(u8),
    Bytes(ByteSize),
}

impl Default for Floor {
    /// Where kubelet begins to evict pods, and half of that again.
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
            return Ok(Self::Percent(
                percent.with_context(|| format!("{text:?} is no share, such as 10%"))?,
            ));
        }
        match text.parse() {
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(_) => bail!("{text:?} is neither a share, such as 10%, nor a size, such as 20GiB"),
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

/// What became of one image on one snapshotter.
#[derive(Debug)]
pub(crate) enum Warmed {
    /// It was ready.
    Ready,
    /// It is ready now.
    Unpacked(Report),
    /// It would be unpacked.
    Would,
    /// Too little would be left free.
    NoRoom {
        /// Bytes that are free.
        free: u64,
        /// Bytes that stay free.
        floor: u64,
    },
    /// It is nothing for this snapshotter.
    Skipped(UnpackError),
}

/// Whether an error says that there is nothing of the image for this machine and snapshotter,
/// however often it is tried.
fn is_for_others(error: &UnpackError) -> bool {
    matches!(
        error,
        UnpackError::NoManifest { .. }
            | UnpackError::NotAnImage { .. }
            | UnpackError::Unsupported { .. }
            | UnpackError::LayerNotTaken { .. }
    )
}

/// Of the images `names` those that fit one of `patterns`, each once, by the best of its names: by
/// one to pull by before a bare ID.
pub(crate) async fn choose(
    engine: &Engine,
    names: impl IntoIterator<Item = String>,
    patterns: &[WildMatch],
) -> Vec<String> {
    let mut names: Vec<String> = names
        .into_iter()
        .filter(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        .collect();
    let rank = |name: &str| (name.parse::<Digest>().is_ok(), name.contains('@'));
    names.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    let mut targets = BTreeSet::new();
    let mut chosen = Vec::new();
    for name in names {
        // One that is gone by now is none.
        let Ok(image) = engine.resolve(&name).await else {
            continue;
        };
        if targets.insert(image.target.digest.to_string()) {
            chosen.push(name);
        }
    }
    chosen
}

/// Makes one image ready if it is not and there is room, and tells how it goes on; or only says
/// what it would do. `pick` is what containerd takes for containers: those are who it is for.
pub(crate) async fn warm(
    engine: &Engine,
    image: &str,
    snapshotter: &str,
    floor: Floor,
    dry_run: bool,
    pick: ManifestPreference,
    mut tell: impl FnMut(&Event),
) -> Result<Warmed, UnpackError> {
    let need = engine.profiles().need(snapshotter);
    let request = Request {
        background: true,
        pick,
        origin: "prewarm".to_owned(),
        repair: need.is_some_and(|need| need.repair_label.is_some()),
        ..Request::new(image, snapshotter)
    };
    let plan = match engine.plan(&request).await {
        Err(error) if is_for_others(&error) => return Ok(Warmed::Skipped(error)),
        plan => plan?,
    };
    if engine.is_ready(&plan, snapshotter).await? {
        return Ok(Warmed::Ready);
    }
    if let Some((free, total)) = space(engine, snapshotter).await? {
        let floor = floor.bytes_of(total);
        if free < floor {
            return Ok(Warmed::NoRoom { free, floor });
        }
    }
    if dry_run {
        return Ok(Warmed::Would);
    }
    let job = engine.unpack(request);
    let mut events = job.events();
    while let Some(event) = events.next().await {
        tell(&event);
    }
    job.report().await.map(Warmed::Unpacked)
}

/// Free and all bytes of the file system that a snapshotter is on; `None` if it does not say where
/// it is, or is on another machine's.
async fn space(engine: &Engine, snapshotter: &str) -> Result<Option<(u64, u64)>, UnpackError> {
    let all = engine.snapshotters().await?;
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
        for wrong in ["", "%", "101%", "-1%", "much"] {
            assert!(wrong.parse::<Floor>().is_err(), "{wrong:?}");
        }
    }
}
