// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Addresses: which ones belong together, and how they are shown.

use std::net::IpAddr;

use reqwest::Url;

/// The maximum length of a shown address.
const MAX_SHOWN: usize = 256;

/// Returns an address without its query, fragment and user, which may hold secrets.
pub(crate) fn shown(url: &Url) -> String {
    let mut text = format!("{}://{}{}", url.scheme(), authority(url), url.path());
    if text.len() > MAX_SHOWN {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        text.push('…');
    }
    text
}

/// Returns the host, with the port if it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Returns whether scheme, host and port are the same.
pub(crate) fn same_origin(left: &Url, right: &Url) -> bool {
    left.origin() == right.origin()
}

/// Returns whether an address is on this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Returns whether nobody on the network can read what is sent to an address.
pub(crate) fn is_private(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

/// Returns whether an address is one of the registry with this host.
pub(crate) fn is_registry(url: &Url, host: &str) -> bool {
    if host == "docker.io" {
        return url.scheme() == "https"
            && url.port().is_none()
            && matches!(
                url.host_str(),
                Some("docker.io" | "registry-1.docker.io" | "index.docker.io")
            );
    }
    let registry = Url::parse(&format!("{}://{host}", url.scheme()));
    registry.is_ok_and(|registry| same_origin(&registry, url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = shown(&url(
            "https://user:password@a.b:444/v2/x?X-Amz-Signature=secret#secret",
        ));
        assert_eq!(text, "https://a.b:444/v2/x");
        assert!(shown(&url(&format!("https://a.b/{}", "x".repeat(999)))).len() < 300);
    }

    #[test]
    fn a_registry_has_a_scheme_a_host_and_a_port() {
        for (address, host, is_it) in [
            ("https://a.b/v2", "a.b", true),
            ("https://a.b/v2", "a.b:443", true),
            ("https://a.b:444/v2", "a.b", false),
            ("http://a.b/v2", "a.b:443", false),
            ("https://registry-1.docker.io/v2", "docker.io", true),
            ("http://registry-1.docker.io/v2", "docker.io", false),
            ("https://evil.io/v2", "docker.io", false),
        ] {
            assert_eq!(is_registry(&url(address), host), is_it, "{address} {host}");
        }
    }

    #[test]
    fn plain_addresses_are_private_on_this_machine_only() {
        for (address, private) in [
            ("https://a.b", true),
            ("http://a.b", false),
            ("http://localhost:5000", true),
            ("http://127.0.0.1:5000", true),
            ("http://[::1]:5000", true),
            ("http://localhost.evil.io", false),
            ("http://127.0.0.1.evil.io", false),
            ("ftp://localhost", false),
        ] {
            assert_eq!(is_private(&url(address)), private, "{address}");
        }
    }
}
