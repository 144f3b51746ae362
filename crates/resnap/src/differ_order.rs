// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The order in which containerd's diff service asks its differs to write a layer.

/// The path of the order in containerd's configuration.
pub(crate) const PATH: [&str; 3] = [
    "plugins",
    "io.containerd.service.v1.diff-service",
    "default",
];

/// The differ for layers on erofs, and the one for all.
const EROFS: &str = "erofs";
const WALKING: &str = "walking";

/// Returns whether a differ is asked after another one, or never.
pub(crate) fn is_late(differs: &[String], name: &str, other: &str) -> bool {
    let place = |name: &str| {
        let place = differs.iter().position(|differ| differ == name);
        place.unwrap_or(usize::MAX)
    };
    place(name) > place(other)
}

/// Returns whether layers on erofs are written by the walking differ.
pub(crate) fn is_erofs_late(differs: &[String]) -> bool {
    is_late(differs, EROFS, WALKING)
}

/// Returns the differs with erofs before walking. `None` if they are in that order.
pub(crate) fn with_erofs_first(differs: &[String]) -> Option<Vec<String>> {
    if !is_erofs_late(differs) {
        return None;
    }
    let mut ordered = differs.to_vec();
    ordered.retain(|differ| differ != EROFS);
    let place = ordered.iter().position(|differ| differ == WALKING)?;
    ordered.insert(place, EROFS.to_owned());
    Some(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erofs_comes_before_walking_and_others_stay() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (differs, ordered) in [
            ("walking", Some("erofs walking")),
            ("walking erofs", Some("erofs walking")),
            ("resnap walking", Some("resnap erofs walking")),
            (
                "resnap walking other erofs",
                Some("resnap erofs walking other"),
            ),
            ("erofs walking", None),
            ("resnap", None),
        ] {
            assert_eq!(
                with_erofs_first(&words(differs)),
                ordered.map(words),
                "{differs}"
            );
        }
    }
}
