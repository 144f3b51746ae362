// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The target of a tag (distribution specification, "Pulling manifests").

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use resnap_core::{Descriptor, Digest, Kind, Repository, Result, media_type};
use serde::Deserialize;
use tokio::time::sleep;

use crate::address::shown;
use crate::asked::Asked;
use crate::document::document;
use crate::failure::{Failure, Retry, error};
use crate::reference::Reference;
use crate::session::{Session, Shared};

/// The limit on the number of times that a host is asked.
const MAX_ATTEMPTS: u32 = 3;

/// The limit on the bytes of an index or manifest (distribution `registry/handlers/manifests.go`).
const MAX_DOCUMENT: usize = 4 << 20;

/// The tag of a reference without one.
const LATEST: &str = "latest";

/// The search for the target of a reference.
pub(crate) struct Resolution<'a> {
    shared: &'a Shared,
    reference: &'a str,
    pub(crate) repository: Repository,
    /// The digest that the reference names.
    digest: Option<Digest>,
    tag: &'a str,
}

impl<'a> Resolution<'a> {
    /// The operation in errors.
    pub(crate) const OPERATION: &'static str = "resolve";

    pub(crate) fn parse(shared: &'a Shared, reference: &'a str) -> Result<Self> {
        let parsed = Reference::parse(reference, Self::OPERATION)?;
        Ok(Self {
            shared,
            reference,
            repository: parsed.repository,
            digest: parsed.digest,
            tag: parsed.tag.unwrap_or(LATEST),
        })
    }

    /// Returns the full name.
    pub(crate) fn name(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.repository),
            None => format!("{}:{}", self.repository, self.tag),
        }
    }

    /// Asks one host after the other. `failures` are those of hosts that cannot be asked.
    pub(crate) async fn run(
        &self,
        mut sessions: Vec<Session>,
        mut failures: Vec<Failure>,
    ) -> Result<Descriptor> {
        // Bytes of a digest are checked, the target of a tag cannot be.
        sessions.retain(|session| self.digest.is_some() || session.may_resolve());
        for attempt in 1..=MAX_ATTEMPTS {
            let mut again = Vec::new();
            let mut wait = self.shared.settings.backoff.saturating_mul(attempt);
            for mut session in sessions {
                let failure = match self.ask(&mut session).await {
                    Ok(target) => return Ok(target),
                    Err(failure) => failure,
                };
                match failure.retry {
                    Retry::Soon if attempt < MAX_ATTEMPTS => again.push(session),
                    Retry::After(least) if attempt < MAX_ATTEMPTS => {
                        wait = wait.max(least);
                        again.push(session);
                    }
                    _ => failures.push(failure),
                }
            }
            sessions = again;
            if sessions.is_empty() {
                break;
            }
            sleep(wait).await;
        }
        Err(error(Self::OPERATION, self.reference, &failures))
    }

    async fn ask(&self, session: &mut Session) -> Result<Descriptor, Failure> {
        let asked = self.digest.as_ref().map_or(self.tag, Digest::as_str);
        let response = session.ask(self.shared, Asked::Image(asked)).await?;
        let url = response.url().clone();
        let header = response.headers().get(CONTENT_TYPE).cloned();
        let header = header.as_ref().and_then(|header| header.to_str().ok());
        let header = header.and_then(|header| header.split(';').next());
        let stall: Duration = self.shared.settings.stall;
        let bytes = document(response, stall, MAX_DOCUMENT).await?;
        let wrong =
            |reason: String| Failure::new(Kind::DataLoss, format!("{}: {reason}", shown(&url)));
        let digest = match &self.digest {
            None => Digest::sha256(&bytes),
            Some(wanted) => wanted.same_algorithm(&bytes),
        };
        if let Some(wanted) = self.digest.as_ref().filter(|wanted| **wanted != digest) {
            return Err(wrong(format!("answers with {digest} for {wanted}")));
        }
        let own = serde_json::from_slice::<Document>(&bytes).ok();
        let own = own.and_then(|document| document.media_type);
        let kinds = [own.as_deref(), header.map(str::trim)];
        let is_image = |kind: &&str| media_type::is_manifest(kind) || media_type::is_index(kind);
        let kind = kinds.into_iter().flatten().find(is_image);
        let kind = kind.ok_or_else(|| wrong("answers with no manifest".to_owned()))?;
        Ok(Descriptor {
            media_type: kind.to_owned(),
            digest,
            size: bytes.len() as u64,
            annotations: Default::default(),
            platform: None,
        })
    }
}

/// An index or manifest, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
}
