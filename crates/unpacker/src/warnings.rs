// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Warnings of `check`: images that resnap supports, but containerd or the kernel may not.

use std::collections::HashMap;

use resnap_core::{Platform, erofs_layer};
use resnap_handler_wrapper::listed_platforms;
use resnap_platforms::Matcher;

use crate::Plan;
use crate::backend::Backend;

/// The limit on warnings: a hostile index may cause one for each of its entries.
const MAX_WARNINGS: usize = 32;

/// Returns the warnings for an image on these snapshotters.
pub(crate) async fn warnings(
    backend: &Backend,
    plan: &Plan,
    snapshotters: &[String],
) -> Vec<String> {
    let mut warnings: Vec<String> = config_platform(plan).into_iter().collect();
    warnings.extend(unknown_to_containerd(plan));
    warnings.extend(mounts(backend, plan, snapshotters).await);
    let content = backend.ports.content.as_ref();
    let listed = listed_platforms(content, &backend.scope, &plan.image.target).await;
    // Planning reports an index that cannot be read.
    warnings.extend(order(&listed.unwrap_or_default()));
    warnings.truncate(MAX_WARNINGS);
    warnings
}

/// Warns if an index lists an entry with OS features before the plain one.
fn order(listed: &[Platform]) -> Vec<String> {
    let mut warnings = Vec::new();
    // The first entry with features, by its platform without them.
    let mut featured: HashMap<Platform, &Platform> = HashMap::new();
    for listed in listed {
        let mut plain = listed.normalized();
        if !plain.os_features.is_empty() {
            plain.os_features.clear();
            featured.entry(plain).or_insert(listed);
        } else if let Some(first) = featured.remove(&plain) {
            warnings.push(format!(
                "the index lists {first} before {listed}, and of the two containerd up to 2.2 may take the first: list the plain one first"
            ));
        }
        if warnings.len() == MAX_WARNINGS {
            break;
        }
    }
    warnings
}

/// Warns if the platform of the config differs from that in the index.
fn config_platform(plan: &Plan) -> Option<String> {
    let listed = plan.manifest.platform.as_ref()?;
    let matcher = Matcher::only(listed).ignoring_features();
    (!matcher.matches(&plan.platform)).then(|| {
        format!(
            "the index lists the manifest for {listed}, and its config says {}: a pull by containerd 2.2.2 and later unpacks nothing of it, and does not say so",
            plan.platform
        )
    })
}

/// Warns if containerd does not know the media type of a layer.
fn unknown_to_containerd(plan: &Plan) -> Option<String> {
    let mut types = plan.layers.iter().map(|layer| &layer.descriptor.media_type);
    let media_type = types.find(|media_type| erofs_layer::is_of_format(media_type))?;
    Some(format!(
        "containerd up to 2.4 takes nothing of type {media_type:?} for a layer: it cannot unpack this image itself, and starts containers of it only if its config lists the diff IDs and it is ready"
    ))
}

/// The limit of overlayfs on lower directories (Linux `fs/overlayfs`, `OVL_MAX_STACK`).
const MAX_LOWER: usize = 500;

/// The limit of Linux on the bytes of mount options: a page of the usual size.
const MAX_OPTIONS: usize = 4096;

/// The digits of a snapshot's number on a node that has run for long.
const MOST_DIGITS: usize = 5;

/// Warns if the layers cannot be mounted for a container.
async fn mounts(backend: &Backend, plan: &Plan, snapshotters: &[String]) -> Vec<String> {
    let layers = plan.layers.len();
    // The check of each layer reports a backend that does not answer.
    let all = backend.ports.introspection.snapshotters().await;
    let all = all.unwrap_or_default().into_iter();
    let asked = all.filter(|info| snapshotters.contains(&info.name));
    asked
        .filter_map(|info| {
            let root = info.root.as_deref().unwrap_or_default();
            unmountable(&info.name, root, layers)
        })
        .collect()
}

/// Returns the reason why this many layers cannot be mounted; `None` if they can.
fn unmountable(snapshotter: &str, root: &str, layers: usize) -> Option<String> {
    if !matches!(snapshotter, "overlayfs" | "erofs") {
        return None;
    }
    if layers > MAX_LOWER {
        return Some(format!(
            "on {snapshotter} no container can start: it has {layers} layers, and overlayfs mounts at most {MAX_LOWER}"
        ));
    }
    let digits = (1..=MOST_DIGITS).find(|digits| options(root, layers, *digits) > MAX_OPTIONS)?;
    Some(format!(
        "on {snapshotter} containers may not start (\"mount options is too long\"): with {layers} layers below {root} and snapshots' numbers of {digits} digits they take more than {MAX_OPTIONS} bytes"
    ))
}

/// Returns the bytes of the mount options of a container, after containerd has shortened them
/// (`core/mount/mount_linux.go`, `compactLowerdirOption`).
fn options(root: &str, layers: usize, digits: usize) -> usize {
    let own = |option: &str, dir: &str| {
        option.len() + root.len() + "/snapshots/".len() + digits + dir.len() + ",".len()
    };
    // The directories are relative to their common parent.
    let lower = layers * (digits + "/fs:".len());
    own("workdir=", "/work") + own("upperdir=", "/fs") + "lowerdir=".len() + lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_cannot_be_mounted_cause_warnings() {
        let root = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
        let long = format!("/{}", "x".repeat(1900));
        for (snapshotter, root, layers, says) in [
            ("overlayfs", root, 127, None),
            ("overlayfs", root, 420, None),
            ("overlayfs", root, 480, Some("5 digits")),
            ("overlayfs", root, 500, Some("4 digits")),
            ("overlayfs", root, 501, Some("at most 500")),
            ("overlayfs", &long, 10, None),
            ("overlayfs", &long, 40, Some("2 digits")),
            ("erofs", root, 501, Some("at most 500")),
            // These mount no stack of directories.
            ("native", root, 501, None),
            ("nydus", root, 501, None),
        ] {
            let warning = unmountable(snapshotter, root, layers);
            match says {
                Some(says) => assert!(
                    warning.clone().unwrap_or_default().contains(says),
                    "{warning:?}"
                ),
                None => assert_eq!(warning, None),
            }
        }
    }

    #[test]
    fn options_are_counted_as_they_are_mounted() {
        let options_of = |ids: [&str; 3]| {
            let dir = |id: &str, dir: &str| format!("/r/snapshots/{id}/{dir}");
            format!(
                "workdir={},upperdir={},lowerdir={}/fs:{}/fs",
                dir(ids[0], "work"),
                dir(ids[0], "fs"),
                ids[1],
                ids[2]
            )
        };
        let text = options_of(["123", "122", "121"]);
        // One colon less than counted, and the kernel adds a terminating byte.
        assert_eq!(options("/r", 2, 3), text.len() + 1);
    }
}
