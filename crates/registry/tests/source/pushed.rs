// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A registry that is pushed to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use resnap_core::{Digest, media_type};
use serde_json::{Value, json};

use crate::server::{Reply, Request, Server};

/// The repository of the tests.
const ROOT: &str = "/v2/team/web/";

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: BTreeMap<Digest, String>,
    /// The media type and the document, by tags and digests.
    pub(crate) manifests: BTreeMap<String, (String, String)>,
}

/// The abilities of a registry.
#[derive(Clone, Copy)]
pub(crate) struct Abilities {
    pub(crate) lists_referrers: bool,
    pub(crate) removes: bool,
}

pub(crate) struct Registry {
    pub(crate) server: Server,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) async fn start(abilities: Abilities) -> Self {
        Self::behind(abilities, |_, _| None).await
    }

    /// Starts a registry that has something before it, which may answer itself.
    pub(crate) async fn behind(
        abilities: Abilities,
        before: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        let server = Server::start(move |request, number| {
            before(request, number)
                .unwrap_or_else(|| answer(request, &mut shared.lock().unwrap(), abilities))
        })
        .await;
        Self { server, state }
    }

    /// Returns the methods and paths below the repository, without queries, of all requests; digests are short.
    pub(crate) fn asked(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let asked = requests.map(|request| {
            let path = request.target.split('?').next().unwrap();
            let path = path.strip_prefix(ROOT).unwrap();
            let path = match path.split_once("sha256") {
                Some((before, digest)) => format!("{before}{}", &digest[1..5]),
                None => path.to_owned(),
            };
            format!("{} {path}", request.method)
        });
        asked.collect()
    }

    /// Returns the entries of the index under the tag of a subject's referrers.
    pub(crate) fn tagged(&self, subject: &Digest) -> Option<Vec<Value>> {
        let tag = subject.as_str().replace(':', "-");
        let state = self.state.lock().unwrap();
        let (media_type, document) = state.manifests.get(&tag)?;
        assert_eq!(media_type, media_type::OCI_INDEX);
        let index: Value = serde_json::from_str(document).unwrap();
        Some(index["manifests"].as_array().unwrap().clone())
    }
}

fn answer(request: &Request, state: &mut State, abilities: Abilities) -> Reply {
    let unknown = || Reply::new(404, r#"{"errors":[{"code":"UNKNOWN"}]}"#);
    let (path, query) = match request.target.split_once('?') {
        Some((path, query)) => (path, query),
        None => (request.target.as_str(), ""),
    };
    let Some(path) = path.strip_prefix(ROOT) else {
        return unknown();
    };
    let found = |has: bool| {
        if has {
            Reply::new(200, "")
        } else {
            Reply::new(404, "")
        }
    };
    match (request.method.as_str(), path.split_once('/')) {
        ("POST", _) if path == "blobs/uploads/" && request.body.is_empty() => {
            let location = format!("{ROOT}blobs/uploads/1?state=a%2Fb");
            Reply::new(202, "").with("location", &location)
        }
        ("PUT", _) if path == "blobs/uploads/1" => {
            let digest = query.strip_prefix("state=a%2Fb&digest=").unwrap();
            let digest: Digest = digest.replace("%3A", ":").parse().unwrap();
            if digest != Digest::sha256(request.body.as_bytes()) {
                return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
            }
            state.blobs.insert(digest, request.body.clone());
            Reply::new(201, "")
        }
        ("HEAD", Some(("blobs", digest))) => {
            found(state.blobs.contains_key(&digest.parse().unwrap()))
        }
        ("HEAD" | "GET", Some(("manifests", name))) => match state.manifests.get(name) {
            None => found(false),
            Some((media_type, document)) => {
                let body = if request.method == "GET" {
                    document
                } else {
                    ""
                };
                let digest = Digest::sha256(document.as_bytes());
                Reply::new(200, body)
                    .with("content-type", media_type)
                    .with("docker-content-digest", digest.as_str())
            }
        },
        ("PUT", Some(("manifests", name))) => {
            let media_type = request.header("content-type").unwrap().to_owned();
            let digest = Digest::sha256(request.body.as_bytes()).to_string();
            let stored = (media_type, request.body.clone());
            state.manifests.insert(digest, stored.clone());
            state.manifests.insert(name.to_owned(), stored);
            let document: Value = serde_json::from_str(&request.body).unwrap();
            match document["subject"]["digest"].as_str() {
                Some(subject) if abilities.lists_referrers => {
                    Reply::new(201, "").with("oci-subject", subject)
                }
                _ => Reply::new(201, ""),
            }
        }
        ("DELETE", Some(("manifests", _))) if !abilities.removes => {
            Reply::new(405, r#"{"errors":[{"code":"UNSUPPORTED","message":"no"}]}"#)
        }
        ("DELETE", Some(("manifests", digest))) => match state.manifests.remove(digest) {
            None => unknown(),
            Some(_) => Reply::new(202, ""),
        },
        ("GET", Some(("referrers", subject))) if abilities.lists_referrers => {
            let documents = state.manifests.values().map(|(_, document)| document);
            let of = |document: &&String| {
                let document: Value = serde_json::from_str(document).unwrap();
                document["subject"]["digest"] == subject
            };
            let entries = documents.filter(of).map(|document| {
                json!({
                    "mediaType": media_type::OCI_MANIFEST, "artifactType": "a/1",
                    "digest": Digest::sha256(document.as_bytes()), "size": document.len(),
                })
            });
            let index = json!({"manifests": entries.collect::<Vec<_>>()}).to_string();
            Reply::new(200, index).with("content-type", media_type::OCI_INDEX)
        }
        _ => unknown(),
    }
}
