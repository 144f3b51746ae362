// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Credentials in Docker's config files (`config.json`), as Docker and kubelet read them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use resnap_core::{Credential, Secret, null_is_default};
use serde::Deserialize;
use wildmatch::WildMatch;
use zeroize::Zeroizing;

use crate::certs::read;

/// A config file.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DockerConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Auth>,
    #[serde(default, deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Zeroizing<String>,
    username: Zeroizing<String>,
    password: Zeroizing<String>,
    identitytoken: Zeroizing<String>,
    registrytoken: Zeroizing<String>,
}

/// The place of a credential.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The file itself.
    Here(Credential),
    /// The helper of this name, for this server.
    Helper { name: String, server: String },
}

impl DockerConfig {
    /// Reads a file; an empty config if it does not exist.
    ///
    /// # Errors
    /// A text that names the file and has nothing of its contents.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let bytes = match read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Self::parse(&bytes)
            .map_err(|line| format!("{}: line {line}: not a Docker config", path.display()))
    }

    /// Parses a file. The error is the line: the parser's text would quote the file.
    fn parse(bytes: &[u8]) -> Result<Self, usize> {
        serde_json::from_slice(bytes).map_err(|error| error.line())
    }

    /// Returns the credentials for a repository of a registry: of helpers for this registry, of the
    /// file, those for the longest path first, and of the helper for all registries.
    pub(crate) fn find(&self, host: &str, path: &str) -> Vec<Found> {
        let helper = |name: &str, server: &str| Found::Helper {
            name: name.to_owned(),
            server: server.to_owned(),
        };
        let mut found = Vec::new();
        for (key, name) in &self.cred_helpers {
            if matched(key, host, path).is_some() {
                found.push(helper(name, key));
            }
        }
        let auths = self
            .auths
            .iter()
            .filter_map(|(key, auth)| Some((matched(key, host, path)?, auth.credential()?)));
        let mut auths: Vec<_> = auths.collect();
        auths.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        found.extend(
            auths
                .into_iter()
                .map(|(_, credential)| Found::Here(credential)),
        );
        if !self.creds_store.is_empty() {
            let server = if host == "docker.io" {
                "https://index.docker.io/v1/"
            } else {
                host
            };
            found.push(helper(&self.creds_store, server));
        }
        found
    }
}

impl Auth {
    fn credential(&self) -> Option<Credential> {
        let secret = |text: &str| Secret::from(text);
        if !self.identitytoken.is_empty() {
            return Some(Credential::IdentityToken(secret(&self.identitytoken)));
        }
        if !self.registrytoken.is_empty() {
            return Some(Credential::RegistryToken(secret(&self.registrytoken)));
        }
        if self.auth.is_empty() {
            return (!self.username.is_empty()).then(|| Credential::Basic {
                username: secret(&self.username),
                password: secret(&self.password),
            });
        }
        let bytes = Zeroizing::new(STANDARD.decode(self.auth.trim()).ok()?);
        let (username, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        Some(Credential::Basic {
            username: secret(username),
            // Docker pads it with zeros.
            password: secret(password.trim_end_matches('\0')),
        })
    }
}

/// Returns the length of the path in a key if it is for a repository. Keys have the forms `a.b`,
/// `*.b:5000`, `a.b/path`, `https://a.b` and `https://index.docker.io/v1/`.
fn matched(key: &str, host: &str, path: &str) -> Option<usize> {
    let (scheme, address) = key.split_once("://").unwrap_or(("https", key));
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let address = address.trim_end_matches('/');
    let (key_host, key_path) = address.split_once('/').unwrap_or((address, ""));
    let key_host = match key_host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let key_path = match key_path {
        "v1" | "v2" => "",
        other => other,
    };
    let is_of_path = key_path.is_empty()
        || path
            .strip_prefix(key_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (is_host(key_host, host) && is_of_path).then_some(key_path.len())
}

/// Returns whether a host matches a pattern, label by label; the ports must be equal.
fn is_host(pattern: &str, host: &str) -> bool {
    if pattern == host {
        return true;
    }
    let split = |text: &str| match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), port.to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let ((pattern, port), (host, host_port)) = (split(pattern), split(host));
    let (patterns, labels) = (pattern.split('.').count(), host.split('.').count());
    pattern.contains('*')
        && port == host_port
        && patterns == labels
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, label)| WildMatch::new(pattern).matches(label))
}

/// Reads several files. The texts say which could not be read.
pub(crate) fn read_all(paths: &[PathBuf]) -> (Vec<DockerConfig>, Vec<String>) {
    let (mut configs, mut notes) = (Vec::new(), Vec::new());
    for path in paths {
        match DockerConfig::read(path) {
            Ok(config) => configs.push(config),
            Err(note) => notes.push(note),
        }
    }
    (configs, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Found {
        Found::Here(Credential::Basic {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn keys_have_several_forms() {
        for (key, host, path, matches) in [
            (
                "https://index.docker.io/v1/",
                "docker.io",
                "library/web",
                Some(0),
            ),
            ("docker.io", "docker.io", "library/web", Some(0)),
            ("a.b", "a.b", "c", Some(0)),
            ("https://a.b/v2/", "a.b", "c", Some(0)),
            ("http://a.b", "a.b", "c", Some(0)),
            ("a.b/c", "a.b", "c/d", Some(1)),
            ("a.b/c", "a.b", "cd", None),
            ("a.b/c/d", "a.b", "c/d", Some(3)),
            ("a.b", "a.b:5000", "c", None),
            ("a.b:5000", "a.b:5000", "c", Some(0)),
            ("a.b:5000", "a.b", "c", None),
            ("*.b", "a.b", "c", Some(0)),
            ("*.b:5000", "a.b:5000", "c", Some(0)),
            ("*.b", "x.a.b", "c", None),
            ("*", "a.b", "c", None),
            ("ftp://a.b", "a.b", "c", None),
            ("", "a.b", "c", None),
        ] {
            assert_eq!(matched(key, host, path), matches, "{key} {host}/{path}");
        }
    }

    #[test]
    fn credentials_are_found_in_order() {
        let text = r#"{"auths":{
            "a.b":{"auth":"dTpwOnE="},
            "https://a.b/c":{"username":"u2","password":"p2"},
            "t.b":{"username":"00000000-0000-0000-0000-000000000000","identitytoken":"i"},
            "r.b":{"registrytoken":"r"},
            "s.b":{}, "e.b":{"auth":"!"}},
            "credHelpers":{"a.b":"ecr-login"},"credsStore":"pass","HttpHeaders":{"x":"y"}}"#;
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let helper = |name: &str, server: &str| Found::Helper {
            name: name.to_owned(),
            server: server.to_owned(),
        };
        let store = |server| helper("pass", server);
        assert_eq!(
            config.find("a.b", "c/d"),
            [
                helper("ecr-login", "a.b"),
                basic("u2", "p2"),
                basic("u", "p:q"),
                store("a.b")
            ]
        );
        let identity = Found::Here(Credential::IdentityToken("i".into()));
        assert_eq!(config.find("t.b", "c"), [identity, store("t.b")]);
        let token = Found::Here(Credential::RegistryToken("r".into()));
        assert_eq!(config.find("r.b", "c"), [token, store("r.b")]);
        assert_eq!(config.find("s.b", "c"), [store("s.b")]);
        assert_eq!(config.find("e.b", "c"), [store("e.b")]);
        assert_eq!(
            config.find("docker.io", "c"),
            [store("https://index.docker.io/v1/")]
        );
    }

    #[test]
    fn errors_quote_nothing_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let missing = directory.path().join("missing.json");
        std::fs::write(&path, "{\n\"auths\":{\"a.b\":\"hidden\"}}").unwrap();
        let (configs, notes) = read_all(&[path.clone(), missing]);
        assert_eq!(configs.len(), 1);
        assert_eq!(
            notes,
            [format!("{}: line 2: not a Docker config", path.display())]
        );
    }
}
