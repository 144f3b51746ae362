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

/// Returns whether an address is one that other machines cannot reach, and whose servers trust this
/// machine more: of this machine, or link-local, as are the metadata services of clouds. Names are not
/// resolved.
pub(crate) fn is_inwards(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.trim_end_matches('.');
    match address
        .parse::<IpAddr>()
        .map(|address| address.to_canonical())
    {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback() || address.is_unspecified() || address.is_link_local()
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_unique_local()
        }
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
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
    fn addresses_that_only_this_machine_reaches_are_inwards() {
        for (address, inwards) in [
            ("http://127.0.0.1:80", true),
            ("http://127.8.8.8", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0", true),
            ("http://[::]", true),
            ("http://169.254.169.254/latest", true),
            ("http://[fe80::1]", true),
            ("http://[fd00:ec2::254]", true),
            ("https://localhost", true),
            ("https://localhost.", true),
            ("https://x.localhost", true),
            ("https://a.b", false),
            ("https://10.0.0.1", false),
            ("https://localhost.a.b", false),
        ] {
            assert_eq!(is_inwards(&url(address)), inwards, "{address}");
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
