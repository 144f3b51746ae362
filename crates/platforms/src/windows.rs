// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Compatibility of Windows versions (containerd/platforms `platform_windows_compat.go`).

/// The build of Windows Server 2022, the first with an ABI that newer hosts keep. The next long-term
/// release, 26100, and later ones support it too, so it is the lowest compatible build for every later
/// host.
const STABLE_ABI: u16 = 20348;

/// A numeric version without the revision: `10.0.20348` of `10.0.20348.1`. An invalid version is 0.0.0.
#[derive(Default, PartialEq, Eq)]
struct Version {
    major: u8,
    minor: u8,
    build: u16,
}

impl Version {
    fn parse(text: &str) -> Self {
        // The integer parsers also accept a leading "+".
        if text.contains('+') {
            return Self::default();
        }
        let mut parts = text.split('.');
        let mut next = || parts.next().unwrap_or_default();
        match (next().parse(), next().parse(), next().parse()) {
            (Ok(major), Ok(minor), Ok(build)) => Self {
                major,
                minor,
                build,
            },
            _ => Self::default(),
        }
    }
}

/// Returns whether an image of version `image` runs on a host of version `host`. A missing version on
/// either side is compatible with everything.
pub(crate) fn is_compatible(host: &str, image: &str) -> bool {
    let host = Version::parse(host);
    if host == Version::default() || image.is_empty() {
        return true;
    }
    let image = Version::parse(image);
    if (host.major, host.minor) != (image.major, image.minor) {
        return false;
    }
    if host.build < STABLE_ABI {
        return host.build == image.build;
    }
    (STABLE_ABI..=host.build).contains(&image.build)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_run_images_of_their_generation() {
        for (host, image, expected) in [
            ("10.0.17763", "10.0.17763.99", true),
            ("10.0.17763", "10.0.17762", false),
            ("10.0.20348", "10.0.20347", false),
            ("10.0.25398", "10.0.20348", true),
            ("10.0.25398", "10.0.26100", false),
            ("10.0.26200", "10.0.20348", true),
            ("10.0.26200", "10.1.26200", false),
            ("10.0.26200", "garbage", false),
            ("garbage", "10.0.20348", true),
            ("10.0", "10.0.20348", true),
            ("10.0.99999999999", "10.0.20348", true),
            ("10.0.+26100", "10.0.17763", true),
        ] {
            assert_eq!(is_compatible(host, image), expected, "{image} on {host}");
        }
    }
}
