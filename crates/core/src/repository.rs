// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Repositories: the host of a registry and a path on it, as references to images name them.

use std::fmt;

/// A repository of a registry, such as `docker.io/library/web`.
///
/// Host and path become parts of URLs and of file names, so they hold nothing but the characters that
/// the grammar of references allows (distribution `reference/regexp.go`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

/// The host of references without one.
const DOCKER_HOST: &str = "docker.io";

/// The maximum length of host and path together (distribution `reference/reference.go`,
/// `RepositoryNameTotalLengthMax`).
const MAX_LENGTH: usize = 255;

impl Repository {
    /// Returns the repository at this path of the registry `host`; `None` if one of them is malformed.
    pub fn new(host: &str, path: &str) -> Option<Self> {
        let host = if host == "index.docker.io" {
            DOCKER_HOST
        } else {
            host
        };
        let is_valid = is_host(host) && is_path(path) && host.len() + path.len() < MAX_LENGTH;
        is_valid.then(|| Self {
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Returns the repository that a reference names; `None` for a bare image ID and for any text that
    /// is not a reference. A reference without a host is one of Docker Hub: `web:1` is of
    /// `docker.io/library/web`.
    pub fn of_reference(reference: &str) -> Option<Self> {
        // Not by oci-spec's `Reference`, which takes no IPv6 address as a host.
        if reference.starts_with("sha256:") {
            return None;
        }
        let name = reference
            .split_once('@')
            .map_or(reference, |(name, _)| name);
        let name = match name.rsplit_once(':') {
            Some((before, tag)) if !tag.contains('/') => before,
            _ => name,
        };
        match name.split_once('/') {
            Some((host, path)) if names_a_host(host) => {
                if matches!(host, DOCKER_HOST | "index.docker.io") && !path.contains('/') {
                    Self::new(DOCKER_HOST, &format!("library/{path}"))
                } else {
                    Self::new(host, path)
                }
            }
            Some(_) => Self::new(DOCKER_HOST, name),
            None => Self::new(DOCKER_HOST, &format!("library/{name}")),
        }
    }

    /// Returns the host of the registry, with its port if the reference has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path on the registry.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Returns whether the first component of a name is a host rather than a part of the path.
fn names_a_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let inner = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let is_name = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_name && port.is_none_or(is_port)
}

fn is_path(path: &str) -> bool {
    path.split('/').all(|part| {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        };
        part.bytes().all(allowed)
            && part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part.ends_with(|last: char| last.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_repositories() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (reference, repository) in [
            ("web", "docker.io/library/web"),
            ("web:1", "docker.io/library/web"),
            ("team/web:1", "docker.io/team/web"),
            ("docker.io/web", "docker.io/library/web"),
            ("index.docker.io/library/web:1", "docker.io/library/web"),
            ("localhost/web", "localhost/web"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a"),
            ("[::1]:5000/a:1", "[::1]:5000/a"),
            ("ghcr.io/a/b_c/d-e.f", "ghcr.io/a/b_c/d-e.f"),
        ] {
            let parsed = Repository::of_reference(reference).map(|name| name.to_string());
            assert_eq!(parsed.as_deref(), Some(repository), "{reference}");
            let with_digest = format!("{reference}@{digest}");
            let parsed = Repository::of_reference(&with_digest).map(|name| name.to_string());
            assert_eq!(parsed.as_deref(), Some(repository), "{with_digest}");
        }
    }

    #[test]
    fn what_would_escape_from_a_url_or_directory_is_refused() {
        for reference in [
            "",
            "/",
            "a.b/",
            "a.b//c",
            "a.b/../c",
            "a..b/c",
            "../etc/passwd",
            "a.b/c?d",
            "a.b/c#d",
            "user@a.b/c",
            "a.b:port/c",
            "a.b:99999/c",
            "a.b/C",
            "a.b/c%2f",
            "a.b\n/c",
            "[::1/c",
            &format!("sha256:{}", "a".repeat(64)),
            &format!("a.b/{}", "c".repeat(300)),
        ] {
            let parsed = Repository::of_reference(reference);
            let is_safe = parsed
                .as_ref()
                .is_none_or(|name| name.host() == "docker.io");
            assert!(is_safe, "{reference}: {parsed:?}");
            if let Some(name) = parsed {
                assert!(is_path(name.path()), "{reference}");
            }
        }
        assert_eq!(Repository::new("..", "a"), None);
        assert_eq!(Repository::new("a/b", "a"), None);
        assert_eq!(Repository::new("a.b", "../a"), None);
    }
}
