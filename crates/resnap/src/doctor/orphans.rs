// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of what processes left behind.

use std::time::{Duration, SystemTime};

use resnap_core::{LeaseInfo, error_chain, labels};
use resnap_unpacker::Owner;

use super::finding::{Findings, Severity, quoted};
use super::fix::Fix;
use super::look::Look;
use crate::output::bytes;

/// The time after which an ingest without a byte, or a lease without an expiry, is left behind: pulls end before.
const LONG: Duration = Duration::from_secs(3600);

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    leases(look, findings);
    let namespace = &look.config.namespace.value;
    foreign(&look.survey.leases, namespace, findings);
    staging(look, findings);
    ingests(look, findings);
    snapshots(look, findings);
}

fn leases(look: &Look<'_>, findings: &mut Findings) {
    let orphaned = look
        .leases
        .iter()
        .filter(|lease| lease.owner == Owner::Orphaned);
    let images: Vec<&str> = orphaned
        .map(|lease| lease.image.as_deref().unwrap_or("?"))
        .collect();
    if !images.is_empty() {
        let count = images.len();
        findings.add(
            Severity::Warning,
            "orphans.leases",
            format!("{count} lease{}", plural(count)),
            format!(
                "a process that has ended left {} behind, for {}: what only they keep stays until they expire",
                if count == 1 { "it" } else { "them" },
                images.join(", ")
            ),
            "`resnap leases --sweep`, unless the images are to be unpacked again within the hour",
        );
        findings.with_fix(Fix::DeleteOrphanedLeases);
    }
}

/// Finds leases of other clients that keep something for ever.
fn foreign(leases: &[LeaseInfo], namespace: &str, findings: &mut Findings) {
    for lease in leases {
        if !lease.labels.contains_key(labels::GC_EXPIRE) && is_long_ago(lease.created) {
            let id = &lease.id.0;
            findings.add(
                Severity::Warning,
                "orphans.foreign-leases",
                format!("lease {id}"),
                "another client made it more than an hour ago, and it never expires: what it keeps stays",
                format!(
                    "`ctr --namespace {} leases rm {}`, if its client has ended",
                    quoted(namespace), quoted(id)
                ),
            );
        }
    }
}

fn staging(look: &Look<'_>, findings: &mut Findings) {
    let written = look
        .roots()
        .filter(|(name, _)| look.config.applier.writes(name));
    for (name, root) in written {
        let Some(root) = root else {
            let why = format!("the directory of {name} is not known");
            findings.unknown("orphans.staging", why);
            continue;
        };
        match resnap_applier::leftovers(&root) {
            Ok(left) if left.is_empty() => {}
            Ok(left) => {
                findings.add(
                    Severity::Warning,
                    "orphans.staging",
                    root.join(".resnap").display().to_string(),
                    format!(
                        "{} director{} of layers that a process which was killed had not finished",
                        left.len(),
                        if left.len() == 1 { "y" } else { "ies" }
                    ),
                    "the next unpack on the snapshotter removes them, as a start of `resnap serve` does",
                );
                findings.with_fix(Fix::RemoveStaging { root });
            }
            Err(error) => {
                findings.unknown("orphans.staging", format!("{}: {error}", root.display()));
            }
        }
    }
}

fn ingests(look: &Look<'_>, findings: &mut Findings) {
    let ingests = match &look.ingests {
        Ok(ingests) => ingests,
        Err(error) => return findings.unknown("orphans.ingests", error_chain(error)),
    };
    for ingest in ingests.iter().filter(|ingest| is_long_ago(ingest.updated)) {
        findings.add(
            Severity::Note,
            "orphans.ingests",
            format!("ingest {}", ingest.name),
            format!(
                "nothing was written to it for more than an hour; it has {}",
                bytes(ingest.bytes)
            ),
            "nothing: the next pull of its image goes on with it; else containerd's garbage collection removes it \
             with its lease, or 24 h after a pull without one has opened it",
        );
    }
}

/// Finds snapshots that nothing needs. Those under leases go with these.
fn snapshots(look: &Look<'_>, findings: &mut Findings) {
    for (snapshotter, surveyed) in &look.survey.snapshotters {
        let Ok(surveyed) = surveyed else {
            continue;
        };
        let garbage = surveyed
            .unneeded
            .values()
            .filter(|leases| leases.is_empty())
            .count();
        if garbage > 0 {
            findings.add(
                Severity::Warning,
                "orphans.snapshots",
                format!("{garbage} snapshot{} on {snapshotter}", plural(garbage)),
                "no image, container or lease keeps them; containerd collects garbage only after something was \
                 removed",
                "have it do so: `ctr leases create --id now && ctr leases delete --sync now`",
            );
            findings.with_fix(Fix::CollectGarbage);
        }
        let leased = surveyed
            .unneeded
            .values()
            .filter(|leases| !leases.is_empty());
        let leased = leased.count();
        if leased > 0 {
            findings.add(
                Severity::Note,
                "orphans.leased-snapshots",
                format!("{leased} snapshot{} on {snapshotter}", plural(leased)),
                "no image and no container needs them, and leases keep them: of jobs that run, or that have ended",
                "nothing, unless the leases are orphaned (`resnap leases`)",
            );
        }
    }
}

fn is_long_ago(time: SystemTime) -> bool {
    time.elapsed().is_ok_and(|age| age > LONG)
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use resnap_core::{Labels, LeaseId};

    use super::*;

    #[test]
    fn old_leases_without_an_expiry_are_found() {
        let lease = |id: &str, age: u64, expires: bool| {
            let expiry = (
                labels::GC_EXPIRE.to_owned(),
                "2100-01-01T00:00:00Z".to_owned(),
            );
            LeaseInfo {
                id: LeaseId(id.into()),
                created: SystemTime::now() - Duration::from_secs(age),
                labels: expires.then_some(expiry).into_iter().collect::<Labels>(),
            }
        };
        let leases = [
            lease("old", 7200, false),
            lease("new", 60, false),
            lease("expiring", 7200, true),
        ];
        let mut findings = Findings::default();
        foreign(&leases, "k8s.io", &mut findings);
        let [found] = &findings.findings[..] else {
            panic!("{findings:?}");
        };
        assert_eq!(
            (found.id, &*found.subject),
            ("orphans.foreign-leases", "lease old")
        );
        assert!(
            found
                .way_out
                .contains("ctr --namespace k8s.io leases rm old")
        );
        let mut findings = Findings::default();
        let forged = [lease("a`\nfault: $(id)", 7200, false)];
        foreign(&forged, "k8s.io", &mut findings);
        let way_out = &findings.findings[0].way_out;
        assert!(
            way_out.contains(r"leases rm 'a`\nfault: $(id)'"),
            "{way_out}"
        );
        assert_eq!(way_out.lines().count(), 1);
    }
}
