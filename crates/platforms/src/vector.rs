// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The platforms that a CPU runs, best first (containerd/platforms `compare.go`).

use crate::Platform;

/// The highest variant from which lower ones are derived, far above any that exists. It keeps a variant
/// like `v999999999`, which any image may claim, from being expanded into as many platforms.
const HIGHEST_LEVEL: u32 = 32;

/// Returns the platforms that a machine of a normalised `platform` runs, each with its version and
/// features. Empty for an unknown arm64 variant.
pub(crate) fn vector(platform: &Platform) -> Vec<Platform> {
    let also = |architecture: &str, variant: String| Platform {
        architecture: architecture.to_owned(),
        variant,
        ..platform.clone()
    };
    match platform.architecture.as_str() {
        "amd64" => std::iter::once(platform.clone())
            .chain(lower_levels(&platform.variant, 1).map(|variant| also("amd64", variant)))
            .chain([also("386", String::new())])
            .collect(),
        "arm" => std::iter::once(platform.clone())
            .chain(lower_levels(&platform.variant, 5).map(|variant| also("arm", variant)))
            .collect(),
        "arm64" => {
            let Some((major, minor)) = arm64_version(&platform.variant) else {
                return Vec::new();
            };
            // 9.m includes 8.(m+5), of which there are ten.
            let first_of_v8 = if major == 9 {
                (minor + 5).min(9)
            } else {
                minor
            };
            let v9 = (0..=minor)
                .rev()
                .filter(|_| major == 9)
                .map(|minor| (9, minor));
            let v8 = (0..=first_of_v8).rev().map(|minor| (8, minor));
            v9.chain(v8)
                .map(|(major, minor)| match minor {
                    0 => also("arm64", format!("v{major}")),
                    _ => also("arm64", format!("v{major}.{minor}")),
                })
                // The 32-bit mode of all of them is that of v8.
                .chain((5..=8).rev().map(|level| also("arm", format!("v{level}"))))
                .collect()
        }
        _ => vec![platform.clone()],
    }
}

/// Returns `vN-1` down to the lowest variant, for `vN`; none if N is not a number.
fn lower_levels(variant: &str, lowest: u32) -> impl Iterator<Item = String> {
    let level: u32 = variant
        .strip_prefix('v')
        .unwrap_or(variant)
        .parse()
        .unwrap_or(0);
    (lowest..level.min(HIGHEST_LEVEL + 1))
        .rev()
        .map(|level| format!("v{level}"))
}

/// Parses a known version of arm64: 8.0 to 8.9 and 9.0 to 9.7.
fn arm64_version(variant: &str) -> Option<(u8, u8)> {
    if variant.is_empty() {
        return Some((8, 0));
    }
    let (major, highest, minor) = match variant.strip_prefix("v8") {
        Some(minor) => (8, 9, minor),
        None => (9, 7, variant.strip_prefix("v9")?),
    };
    let minor = match minor.as_bytes() {
        [] => 0,
        [b'.', digit @ b'0'..=b'9'] => digit - b'0',
        _ => return None,
    };
    (minor <= highest).then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variants(specifier: &str) -> Vec<String> {
        let platform: Platform = specifier.parse().unwrap();
        vector(&platform.normalized())
            .into_iter()
            .map(|platform| platform.variant)
            .collect()
    }

    #[test]
    fn made_up_variants_are_not_expanded() {
        for specifier in ["linux/amd64/v999999999", "linux/arm/v4294967295"] {
            assert!(variants(specifier).len() <= 2 + HIGHEST_LEVEL as usize);
        }
        assert_eq!(variants("linux/amd64/v33").len(), 34);
        assert_eq!(variants("linux/amd64/v99999999999999999999").len(), 2);
        assert_eq!(variants("linux/amd64/v-3").len(), 2);
    }

    #[test]
    fn only_known_versions_of_arm64_run_anything() {
        for unknown in ["v8.10", "v9.8", "v8.", "v8.x", "v88", "v7", "8.1", "vv8"] {
            assert!(
                variants(&format!("linux/arm64/{unknown}")).is_empty(),
                "{unknown}"
            );
        }
        assert_eq!(variants("linux/arm64/v9.7").len(), 8 + 10 + 4);
        assert_eq!(variants("linux/arm64/v8.9").len(), 10 + 4);
    }
}
