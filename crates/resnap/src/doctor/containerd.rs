// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of containerd's version, handlers and snapshotters.

use resnap_core::{Platform, major_minor};

use super::containerd_config::ContainerdConfig;
use super::finding::{Findings, Severity};
use super::look::Look;
use super::look::cri::Cri;

/// The ends of life of the versions of containerd (containerd `RELEASES.md` of 2026).
const ENDS: [((u32, u32), &str); 6] = [
    ((1, 6), "2025-08-23"),
    ((1, 7), "2026-09-30"),
    ((2, 0), "2025-11-07"),
    ((2, 1), "2026-05-05"),
    ((2, 2), "2026-11-06"),
    ((2, 3), "2028-04-27"),
];

/// The first version that takes the statistics of containers from `runtime_platforms`.
const PLATFORMS: (u32, u32) = (2, 1);

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    let today = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    end_of_life(&look.version, &today, findings);
    let cri = match &look.cri {
        Ok(cri) => cri,
        Err(why) => return findings.unknown("containerd.handlers", why),
    };
    working(look, cri, findings);
    match &look.containerd {
        Ok(config) => {
            changed(config, findings);
            statistics(look, cri, config, findings);
            labels(look, cri, config, findings);
            discarded(look, cri, config, findings);
        }
        Err(why) => findings.unknown("containerd.config", why),
    }
}

fn end_of_life(version: &str, today: &str, findings: &mut Findings) {
    let Some(own) = major_minor(version) else {
        return findings.unknown(
            "containerd.end-of-life",
            format!("containerd's version {version:?} is not understood"),
        );
    };
    let end = ENDS.iter().find(|(version, _)| *version == own);
    let end = match end {
        Some((_, end)) => *end,
        None if own < ENDS[0].0 => ENDS[0].1,
        // Released later.
        None => return,
    };
    if today >= end {
        findings.add(
            Severity::Note,
            "containerd.end-of-life",
            format!("containerd {version}"),
            format!("its support ended on {end}: only a distribution may still mend it"),
            "change to a version that is supported; 2.3 is for the long term",
        );
    }
}

/// Finds handlers whose snapshotter containerd does not have.
fn working(look: &Look<'_>, cri: &Cri, findings: &mut Findings) {
    for (handler, snapshotter) in &cri.handlers {
        let found = look
            .snapshotters
            .iter()
            .find(|info| info.name == *snapshotter);
        let why = match found {
            None => format!("containerd has no snapshotter {snapshotter}"),
            Some(info) => match &info.failure {
                None => continue,
                Some(failure) => format!("the snapshotter {snapshotter} did not load: {failure}"),
            },
        };
        findings.add(
            Severity::Fault,
            "containerd.snapshotter",
            format!("handler {handler}"),
            format!("{why}; no pod of the handler starts"),
            match found {
                None => format!(
                    "add [proxy_plugins.{snapshotter}], or name another one for the handler"
                ),
                Some(_) => "mend that, and restart containerd".to_owned(),
            },
        );
    }
}

fn changed(config: &ContainerdConfig, findings: &mut Findings) {
    for path in &config.changed {
        findings.add(
            Severity::Warning,
            "containerd.config-changed",
            path.display().to_string(),
            "it has changed since containerd was started: what is said here is what it will do",
            "restart containerd (`systemctl restart containerd`; containers run on)",
        );
    }
}

/// Finds handlers of whose containers kubelet gets no statistics.
fn statistics(look: &Look<'_>, cri: &Cri, config: &ContainerdConfig, findings: &mut Findings) {
    if major_minor(&look.version).is_none_or(|version| version < PLATFORMS) {
        return;
    }
    let consequence = "kubelet's /stats/summary fails with status 500 once a container of it runs, and its \
                       eviction manager gets no statistics at all";
    let restart = "in containerd's configuration, and restart it:";
    for (handler, snapshotter) in cri.others() {
        if config.platform_snapshotter(handler) != Some(snapshotter) {
            let platform = Platform::host();
            findings.add(
                Severity::Fault,
                "containerd.runtime-platforms",
                format!("handler {handler}"),
                format!("there is no runtime_platforms entry with its snapshotter {snapshotter}: {consequence}"),
                format!(
                    "add {restart}\n\
                     [plugins.\"io.containerd.cri.v1.images\".runtime_platforms.{handler}]\n  \
                     platform = \"{}/{}\"\n  snapshotter = \"{snapshotter}\"",
                    platform.os, platform.architecture
                ),
            );
        }
        if config.is_proxy(snapshotter) && config.exported_root(snapshotter).is_none() {
            findings.add(
                Severity::Fault,
                "containerd.exports-root",
                format!("handler {handler}"),
                format!("the plugin of its snapshotter {snapshotter} exports no root directory: {consequence}"),
                format!(
                    "add the directory in which {snapshotter} keeps its snapshots {restart}\n\
                     [proxy_plugins.{snapshotter}.exports]\n  root = \"DIR\""
                ),
            );
        }
    }
}

/// Finds snapshotters that need labels, which containerd does not set.
fn labels(look: &Look<'_>, cri: &Cri, config: &ContainerdConfig, findings: &mut Findings) {
    if config.images_switch("disable_snapshot_annotations") != Some(true) {
        return;
    }
    for snapshotter in cri.snapshotters() {
        if let Some(need) = look.config.profiles.need(snapshotter) {
            findings.add(
                Severity::Warning,
                "containerd.annotations",
                snapshotter,
                format!(
                    "it {}; with disable_snapshot_annotations = true, containerd sets none for what it pulls or \
                     unpacks there itself",
                    need.why
                ),
                "set disable_snapshot_annotations = false for containerd's CRI, and restart containerd",
            );
        }
    }
}

/// Finds nodes that discard layers which another snapshotter needs.
fn discarded(look: &Look<'_>, cri: &Cri, config: &ContainerdConfig, findings: &mut Findings) {
    if config.images_switch("discard_unpacked_layers") != Some(true) {
        return;
    }
    let others: Vec<&str> = cri.others().map(|(handler, _)| handler).collect();
    if others.is_empty() {
        return;
    }
    let subject = "discard_unpacked_layers = true";
    let handlers = others.join(", ");
    if look.config.sources.value.is_empty() {
        findings.add(
            Severity::Warning,
            "containerd.discard",
            subject,
            format!(
                "the layers of pulled images are discarded, pods of the handlers {handlers} need them, and resnap \
                 may get them from nowhere"
            ),
            "name sources in resnap's configuration ([sources] order), or set discard_unpacked_layers = false",
        );
    } else {
        findings.add(
            Severity::Note,
            "containerd.discard",
            subject,
            format!("resnap gets the layers again for pods of the handlers {handlers}, by [sources]"),
            "set discard_unpacked_layers = false to keep the layers of images that are pulled from now on",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_life_is_that_of_the_version() {
        for (version, today, ended) in [
            ("1.5.18", "2026-01-01T00:00:00Z", true),
            ("1.6.20~ds1", "2025-08-22T23:59:59Z", false),
            ("1.7.24~ds1", "2026-11-28T00:00:00Z", true),
            ("v2.1.9", "2026-05-04T00:00:00Z", false),
            ("v2.1.9", "2026-05-05T00:00:00Z", true),
            ("v2.3.5", "2026-11-28T00:00:00Z", false),
            ("v2.9.0", "2036-11-28T00:00:00Z", false),
        ] {
            let mut findings = Findings::default();
            end_of_life(version, today, &mut findings);
            assert_eq!(
                findings.findings.len(),
                usize::from(ended),
                "{version} on {today}"
            );
            assert!(findings.unknown.is_empty());
        }
        let mut findings = Findings::default();
        end_of_life("next", "2026-01-01T00:00:00Z", &mut findings);
        assert_eq!(findings.unknown.len(), 1);
    }
}
