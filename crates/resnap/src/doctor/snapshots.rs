// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of snapshots, and of containerd's records of them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use resnap_core::{
    SnapshotInfo, SnapshotKey, SnapshotKind, Volumes, error_chain, unpacks_without_parents,
};
use resnap_unpacker::{SurveyedSnapshots, UnpackedImage};
use tokio::time::{Instant, timeout_at};

use super::finding::{Findings, Severity, quoted};
use super::fix::Fix;
use super::look::Look;

/// The chains that are looked at at once.
const AT_ONCE: usize = 8;

/// The time for looking into the files of chains.
const TIME_FOR_FILES: Duration = Duration::from_secs(5);

pub(crate) async fn check(look: &Look<'_>, findings: &mut Findings) {
    for (snapshotter, surveyed) in &look.survey.snapshotters {
        match surveyed {
            Ok(surveyed) => {
                guest(look, snapshotter, surveyed, findings);
                lost(look, snapshotter, &surveyed.missing, findings).await;
            }
            Err(error) => findings.unknown(
                "snapshots",
                format!("{snapshotter}: {}", error_chain(error)),
            ),
        }
    }
    parents(look, findings).await;
}

/// Finds layers whose files are in guests only, on snapshotters whose files the host must see.
fn guest(
    look: &Look<'_>,
    snapshotter: &str,
    surveyed: &SurveyedSnapshots,
    findings: &mut Findings,
) {
    let profiles = &look.config.profiles;
    if !matches!(
        profiles.get(snapshotter).volumes,
        Volumes::Host | Volumes::HostExcept { .. }
    ) {
        return;
    }
    let needs = profiles
        .iter()
        .filter_map(|(_, profile)| profile.need.as_ref());
    let marks: BTreeSet<&str> = needs
        .filter_map(|need| Some(need.repair_label?.0))
        .collect();
    let is_marked = |info: &SnapshotInfo| {
        info.kind == SnapshotKind::Committed
            && marks.iter().any(|mark| info.labels.contains_key(*mark))
    };
    let marked = surveyed.snapshots.iter().filter(|info| is_marked(info));
    let marked: BTreeSet<&SnapshotKey> = marked.map(|info| &info.key).collect();
    if marked.is_empty() {
        return;
    }
    for (name, plan, _) in look.known_images() {
        let mut layers = plan
            .layers
            .iter()
            .map(|layer| SnapshotKey::from(&layer.chain_id));
        if layers.any(|key| marked.contains(&key)) {
            findings.add(
                Severity::Fault,
                "snapshots.guest",
                format!("{name} on {snapshotter}"),
                format!("a layer is labelled for a guest, and the host must see the files on {snapshotter}: they are \
                         missing there"),
                format!(
                    "{}; where guests pull, volumes = \"guest\" in [snapshotters.{}]",
                    unpack_again(name, snapshotter),
                    quoted(snapshotter)
                ),
            );
        }
    }
}

/// Finds layers that containerd has a record of, and the snapshotter does not have.
async fn lost(
    look: &Look<'_>,
    snapshotter: &str,
    missing: &[UnpackedImage],
    findings: &mut Findings,
) {
    let asked = missing.iter().map(async |image| {
        let is_lost = look.engine.is_lost(snapshotter, &image.chain_id).await;
        (image, is_lost)
    });
    let asked: Vec<_> = futures::stream::iter(asked)
        .buffered(AT_ONCE)
        .collect()
        .await;
    for (image, is_lost) in asked {
        let name = image.name();
        match is_lost {
            Ok(false) => {}
            Ok(true) => {
                findings.add(
                    Severity::Fault,
                    "snapshots.lost",
                    format!("{name} on {snapshotter}"),
                    format!(
                        "containerd has a record of its layers, and {snapshotter} does not have them: pulls fail with \
                         \"already exists\", and containers with \"not found\""
                    ),
                    format!(
                        "`resnap unpack {} --snapshotter {} --repair`",
                        quoted(name), quoted(snapshotter)
                    ),
                );
                findings.with_fix(Fix::Repair {
                    image: name.to_owned(),
                    snapshotter: snapshotter.to_owned(),
                });
            }
            Err(error) => {
                findings.unknown(
                    "snapshots.lost",
                    format!("{name} on {snapshotter}: {}", error_chain(&error)),
                );
            }
        }
    }
}

/// Finds chains that containerd has made without the layers' parents.
async fn parents(look: &Look<'_>, findings: &mut Findings) {
    if !unpacks_without_parents(&look.version) {
        return;
    }
    let chains = look.known_images().flat_map(|(name, plan, check)| {
        let ready = check.snapshotters.iter();
        let ready = ready.filter(|(_, readiness)| readiness.ready && plan.layers.len() > 1);
        ready.map(move |(snapshotter, _)| (name, plan, snapshotter))
    });
    let chains: Vec<_> = chains.collect();
    let deadline = Instant::now() + TIME_FOR_FILES;
    let looked = chains.iter().map(async |(name, plan, snapshotter)| {
        let looked = timeout_at(deadline, look.engine.require_parents(plan, snapshotter));
        (*name, *snapshotter, looked.await)
    });
    let looked: Vec<_> = futures::stream::iter(looked)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let late = looked
        .iter()
        .filter(|(_, _, looked)| looked.is_err())
        .count();
    if late > 0 {
        findings.unknown(
            "snapshots.parents",
            format!(
                "the files of {late} chains were not looked at within {TIME_FOR_FILES:?}; `resnap check IMAGE` looks \
                 at those of one image"
            ),
        );
    }
    for (name, snapshotter, looked) in looked {
        if let Ok(Err(error)) = looked {
            findings.add(
                Severity::Fault,
                "snapshots.parents",
                format!("{name} on {snapshotter}"),
                format!(
                    "files may have wrong owners and modes: {}",
                    error_chain(&error)
                ),
                unpack_again(name, snapshotter),
            );
        }
    }
}

/// Returns the commands that unpack an image anew.
fn unpack_again(image: &str, snapshotter: &str) -> String {
    let (image, snapshotter) = (quoted(image), quoted(snapshotter));
    format!(
        "`resnap evict {image} --snapshotter {snapshotter}`, then `resnap unpack {image} --snapshotter {snapshotter}`"
    )
}
