// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of images: what a pod would find of them on each snapshotter.

use resnap_core::Profile;
use resnap_unpacker::{Check, LabelState, LayerState};

use super::finding::{Findings, Severity, quoted};
use super::fix::Fix;
use super::look::Look;
use super::look::cri::Cri;
use crate::output::reason;

pub(crate) fn check(look: &Look<'_>, findings: &mut Findings) {
    for image in &look.images {
        if let Err(error) = &image.looked {
            findings.add(
                Severity::Warning,
                "images.unreadable",
                &image.name,
                reason(error, &image.name),
                format!(
                    "`resnap check {}` says more; pull it again, or remove it",
                    quoted(&image.name)
                ),
            );
        }
    }
    for (name, _, check) in look.known_images() {
        for warning in &check.warnings {
            findings.add(
                Severity::Note,
                "images.warning",
                name,
                warning,
                format!("`resnap check {}` says more", quoted(name)),
            );
        }
        for snapshotter in check.snapshotters.keys() {
            let profile = look.config.profiles.get(snapshotter);
            on_snapshotter(name, check, snapshotter, profile, findings);
        }
    }
    if let Ok(cri) = &look.cri {
        steered(look, cri, findings);
        sandbox(look, cri, findings);
    }
}

/// Finds layers of an image that exist on a snapshotter and lack something.
fn on_snapshotter(
    image: &str,
    check: &Check,
    snapshotter: &str,
    profile: &Profile,
    findings: &mut Findings,
) {
    let count = check.layers.len();
    let (mut unlabelled, mut unproven) = (0, None);
    for (index, layer) in check.layers.iter().enumerate() {
        let Some(LayerState::Committed {
            labels,
            unproven: why,
            ..
        }) = layer.snapshots.get(snapshotter)
        else {
            continue;
        };
        let need = profile.need.as_ref();
        let is_needed = need.is_some_and(|need| need.covers(index, count));
        if is_needed && matches!(labels, LabelState::Missing(_)) {
            unlabelled += 1;
        }
        unproven = unproven.or(why.as_deref());
    }
    let subject = format!("{image} on {snapshotter}");
    let command = format!(
        "`resnap unpack {} --snapshotter {} --repair`",
        quoted(image),
        quoted(snapshotter)
    );
    let fix = Fix::Repair {
        image: image.to_owned(),
        snapshotter: snapshotter.to_owned(),
    };
    if unlabelled > 0 {
        let why = profile.need.as_ref().map_or("", |need| &need.why);
        findings.add(
            Severity::Fault,
            "images.unlabelled",
            &subject,
            format!("{unlabelled} of {count} layers lack labels; {snapshotter} {why}"),
            &command,
        );
        findings.with_fix(fix.clone());
    }
    if let Some(why) = unproven {
        findings.add(
            Severity::Fault,
            "images.unproven",
            &subject,
            format!(
                "a layer lacks the proof that integrity = \"{}\" asks for: {why}",
                profile.integrity.as_str()
            ),
            command,
        );
        findings.with_fix(fix);
    }
}

/// Returns whether a container of an image can start on a snapshotter.
fn is_ready(check: &Check, snapshotter: &str) -> bool {
    let readiness = check.snapshotters.get(snapshotter);
    readiness.is_some_and(|readiness| readiness.ready)
}

/// Finds images that only the snapshotter of another handler has, and that the default one cannot get.
fn steered(look: &Look<'_>, cri: &Cri, findings: &mut Findings) {
    let Some(default) = cri.default_snapshotter.as_deref() else {
        return;
    };
    let others: Vec<&str> = cri.others().map(|(_, snapshotter)| snapshotter).collect();
    for (name, _, check) in look.known_images() {
        let Some(other) = others.iter().find(|other| is_ready(check, other)) else {
            continue;
        };
        let missing = check.layers.iter().filter(|layer| !layer.blob).count();
        if is_ready(check, default) || missing == 0 || is_sandbox(cri, check) {
            continue;
        }
        findings.add(
            Severity::Warning,
            "images.steered",
            format!("{name} on {default}"),
            format!(
                "it is on {other} only, and {missing} of its layers' blobs are gone: a pod of the default handler \
                 fails with \"content digest ... not found\" unless the image is pulled for it"
            ),
            format!(
                "`resnap unpack {} --snapshotter {}`; or [cri] always = true lets `resnap serve` do so for each pod",
                quoted(name),
                quoted(default)
            ),
        );
        findings.with_fix(Fix::Unpack {
            image: name.to_owned(),
            snapshotter: default.to_owned(),
        });
    }
}

fn is_sandbox(cri: &Cri, check: &Check) -> bool {
    let image = cri.sandbox_image.as_deref();
    image.is_some_and(|image| check.image == image || check.reference.as_deref() == Some(image))
}

/// Finds sandbox images with which no pod starts.
fn sandbox(look: &Look<'_>, cri: &Cri, findings: &mut Findings) {
    let Some(image) = cri.sandbox_image.as_deref() else {
        return findings.unknown(
            "images.sandbox",
            "containerd's CRI does not name the sandbox image",
        );
    };
    let Some((name, _, check)) = look
        .known_images()
        .find(|(_, _, check)| is_sandbox(cri, check))
    else {
        findings.add(
            Severity::Note,
            "images.sandbox",
            image,
            "the sandbox image is not on the node: the first pod pulls it, for the default snapshotter only",
            format!("`crictl pull {}`", quoted(image)),
        );
        return;
    };
    let missing = check.layers.iter().filter(|layer| !layer.blob).count();
    let snapshotters = cri.snapshotters();
    let unready = snapshotters
        .iter()
        .filter(|snapshotter| !is_ready(check, snapshotter));
    let unready: Vec<&str> = unready.copied().collect();
    if missing == 0 || unready.is_empty() {
        return;
    }
    findings.add(
        Severity::Fault,
        "images.sandbox",
        format!("{name} on {}", unready.join(", ")),
        format!(
            "it is the sandbox image, and {missing} of its layers' blobs are gone: no pod starts there, unless resnap \
             finds them in its [sources]"
        ),
        format!(
            "`ctr --namespace {} images pull --local {image}`, or `resnap unpack {image} --snapshotter SNAPSHOTTER \
             --from FILE` with an archive of it",
            quoted(&look.config.namespace.value),
            image = quoted(image)
        ),
    );
}
