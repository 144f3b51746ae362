// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Versions of Windows, and which of them a host of another version runs
//! (containerd/platforms `platform_windows_compat.go`).

/// Build of Windows Server 2022, the first whose ABI newer hosts keep. The next
/// long-term release, 26100, and all that follow until another one reach back
/// to it as well, so it is the floor of every host since.
const STABLE_ABI: u16 = 20348;

/// Numeric, so only the build that matters here is left of `10.0.20348.1`.
/// What cannot be read is 0.0.0.
#[derive(Default, PartialEq, Eq)]
struct Version {
    major: u8,
    minor: u8,
    build: u16,
}

impl Version {
    fn parse(text: &str) -> Self {
        // The numbers' own parsers also take a leading "+".
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

/// Whether an image of version `image` runs on a host of version `host`; a
/// version that either side does not give excludes nothing.
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
