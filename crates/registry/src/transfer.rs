// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Transfers of blobs, from one candidate after the other.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode, Url};
use resnap_core::{Descriptor, Error, Kind, Result};
use tokio::time::{Instant, sleep_until, timeout};

use crate::address::{authority, shown};
use crate::asked::Asked;
use crate::failure::{Failure, Retry, causes, error};
use crate::refusal::foreign;
use crate::request::{Request, Way, stalled};
use crate::session::{Session, Shared};
use crate::tls::Material;

/// The limit on the number of attempts without progress.
const MAX_ATTEMPTS: u32 = 5;

/// The limit on the wait between attempts that the server asks for no other.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A place that may have the blob.
enum Place {
    Session(Box<Session>),
    /// An address of the descriptor, which gets no credentials.
    Address(Url),
}

struct Candidate {
    place: Place,
    failure: Option<Failure>,
    /// The time from which it may be asked again.
    not_before: Instant,
}

impl Candidate {
    fn new(place: Place) -> Self {
        Self {
            place,
            failure: None,
            not_before: Instant::now(),
        }
    }

    /// Returns the host, and the repository of a registry.
    fn name(&self) -> String {
        match &self.place {
            Place::Session(session) => session.name(),
            Place::Address(url) => authority(url),
        }
    }

    fn may_serve(&self) -> bool {
        self.failure
            .as_ref()
            .is_none_or(|failure| failure.retry != Retry::Never)
    }

    fn fail(&mut self, failure: Failure) {
        if let Retry::After(wait) = failure.retry {
            self.not_before = Instant::now() + wait;
        }
        self.failure = Some(failure);
    }

    async fn get(
        &mut self,
        shared: &Shared,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<Response, Failure> {
        let asked = Asked::Blob(blob, offset);
        match &mut self.place {
            Place::Session(session) => session.ask(shared, asked).await,
            Place::Address(url) => {
                let way = Way {
                    clients: &shared.clients,
                    material: &Material::default(),
                    connect: shared.settings.connect,
                    stall: shared.settings.stall,
                    is_private: true,
                };
                let request = Request {
                    all: asked.headers(),
                    ..Request::default()
                };
                let response = way.ask(url, &request).await?;
                match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
                    _ => Err(foreign(response, shared.settings.stall).await),
                }
            }
        }
    }
}

/// A body that is being received.
struct Body {
    pieces: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    url: Url,
    /// The number of bytes to drop, because they were delivered before.
    skip: u64,
}

/// A transfer of one blob.
pub(crate) struct Transfer {
    shared: Arc<Shared>,
    blob: Descriptor,
    candidates: Vec<Candidate>,
    /// The addresses, for when no registry has the blob.
    addresses: Vec<Url>,
    /// Failures of candidates that are gone.
    failures: Vec<Failure>,
    current: usize,
    /// The next byte to deliver.
    offset: u64,
    body: Option<Body>,
    /// The number of attempts since the last byte.
    attempts: u32,
}

impl Transfer {
    /// Creates a transfer from byte `offset` on. `failures` are those of candidates that could not be
    /// made.
    pub(crate) fn new(
        shared: Arc<Shared>,
        blob: Descriptor,
        offset: u64,
        sessions: Vec<Session>,
        addresses: Vec<Url>,
        failures: Vec<Failure>,
    ) -> Self {
        let place = |session| Candidate::new(Place::Session(Box::new(session)));
        let candidates = sessions.into_iter().map(place).collect();
        Self {
            candidates: sorted(&shared, &blob, candidates),
            shared,
            blob,
            addresses,
            failures,
            current: 0,
            offset,
            body: None,
            attempts: 0,
        }
    }

    /// Opens a body at the current offset. All candidates are asked before one is asked again.
    pub(crate) async fn connect(&mut self) -> Result<()> {
        loop {
            let count = self.candidates.len();
            for index in (self.current..count).chain(0..self.current.min(count)) {
                let candidate = &mut self.candidates[index];
                if !candidate.may_serve() || Instant::now() < candidate.not_before {
                    continue;
                }
                let response = candidate.get(&self.shared, &self.blob, self.offset).await;
                match response.and_then(|response| body(response, &self.blob, self.offset)) {
                    Ok(body) => {
                        let (blob, host) = (&self.blob.digest, candidate.name());
                        self.shared.rejections.serve(blob, &host);
                        self.current = index;
                        self.body = Some(body);
                        return Ok(());
                    }
                    Err(failure) => {
                        tracing::debug!(digest = %self.blob.digest, failure = failure.text, "a source failed");
                        candidate.fail(failure);
                    }
                }
            }
            self.attempts += 1;
            let serving = self
                .candidates
                .iter()
                .filter(|candidate| candidate.may_serve());
            match serving.map(|candidate| candidate.not_before).min() {
                Some(ready) if self.attempts < MAX_ATTEMPTS => {
                    sleep_until(ready.max(Instant::now() + self.backoff())).await;
                }
                _ => self.next_group()?,
            }
        }
    }

    /// Goes on with the descriptor's addresses once no registry serves.
    fn next_group(&mut self) -> Result<()> {
        let spent = self
            .candidates
            .drain(..)
            .filter_map(|candidate| candidate.failure);
        self.failures.extend(spent);
        if self.addresses.is_empty() {
            return Err(error("fetch", self.blob.digest.as_str(), &self.failures));
        }
        let place = |url| Candidate::new(Place::Address(url));
        let candidates = self.addresses.drain(..).map(place).collect();
        self.candidates = sorted(&self.shared, &self.blob, candidates);
        self.current = 0;
        self.attempts = 0;
        Ok(())
    }

    /// Returns the wait before the next attempt, with jitter.
    fn backoff(&self) -> Duration {
        let doubled = 1_u32 << self.attempts.saturating_sub(1).min(16);
        let full = self
            .shared
            .settings
            .backoff
            .saturating_mul(doubled)
            .min(MAX_BACKOFF);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Returns the next bytes; `None` at the end of the blob.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        let stall = self.shared.settings.stall;
        loop {
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            let left = self.blob.size - self.offset;
            let piece = timeout(stall, body.pieces.next()).await;
            let cause = match piece {
                Ok(Some(Ok(mut piece))) => {
                    let skipped = body.skip.min(piece.len() as u64);
                    body.skip -= skipped;
                    let piece = piece.split_off(skipped as usize);
                    if piece.len() as u64 > left {
                        return Err(self.too_long());
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    self.offset += piece.len() as u64;
                    self.attempts = 0;
                    return Ok(Some(piece));
                }
                // Whatever else the server does then, the blob is complete.
                _ if left == 0 => return Ok(None),
                Ok(None) => "it ended".to_owned(),
                Ok(Some(Err(error))) => causes(&error),
                Err(_) => {
                    let failure = stalled(&body.url, stall);
                    return Err(error("fetch", self.blob.digest.as_str(), &[failure]));
                }
            };
            self.broken(&cause).await;
        }
    }

    /// Drops a broken body, and waits for the next attempt. After too many without progress, its
    /// candidate is given up.
    async fn broken(&mut self, cause: &str) {
        let Some(body) = self.body.take() else {
            return;
        };
        let text = format!(
            "{}: the body broke at byte {}: {cause}",
            shown(&body.url),
            self.offset
        );
        tracing::debug!(digest = %self.blob.digest, failure = text, "a transfer broke");
        self.attempts += 1;
        let is_over = self.attempts >= MAX_ATTEMPTS;
        if let Some(candidate) = self.candidates.get_mut(self.current) {
            let retry = if is_over { Retry::Never } else { Retry::Soon };
            candidate.fail(Failure::new(Kind::Unavailable, text).worth(retry));
        }
        if is_over {
            self.attempts = 0;
        } else {
            sleep_until(Instant::now() + self.backoff()).await;
        }
    }

    fn too_long(&self) -> Error {
        let url = self
            .body
            .as_ref()
            .map(|body| shown(&body.url))
            .unwrap_or_default();
        let text = format!(
            "{url}: more bytes than the {} of the descriptor",
            self.blob.size
        );
        error(
            "fetch",
            self.blob.digest.as_str(),
            &[Failure::new(Kind::DataLoss, text)],
        )
    }
}

/// Moves rejected hosts to the end.
fn sorted(shared: &Shared, blob: &Descriptor, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let rejections = &shared.rejections;
    candidates.sort_by_key(|candidate| rejections.is_rejected(&blob.digest, &candidate.name()));
    candidates
}

/// Returns the body of a response to a request from byte `offset` on, if it can be the blob's.
fn body(response: Response, blob: &Descriptor, offset: u64) -> Result<Body, Failure> {
    let url = response.url().clone();
    let wrong = |text: String| Failure::new(Kind::DataLoss, format!("{}: {text}", shown(&url)));
    let (start, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = response.headers().get(CONTENT_RANGE);
        range
            .and_then(|range| content_range(range.to_str().ok()?))
            .ok_or_else(|| wrong("206 without a valid Content-Range".to_owned()))?
    } else {
        (0, response.content_length())
    };
    if let Some(size) = size.filter(|size| *size != blob.size) {
        return Err(wrong(format!(
            "has {size} bytes, the descriptor says {}",
            blob.size
        )));
    }
    let Some(skip) = offset.checked_sub(start) else {
        return Err(wrong(format!(
            "answers from byte {start} on, not from {offset}"
        )));
    };
    Ok(Body {
        pieces: Box::pin(response.bytes_stream()),
        url,
        skip,
    })
}

/// Parses `bytes START-END/SIZE` to start and size, where the size may be unknown (`*`).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes */10", "bytes 5/10", "items 5-9/10", "bytes 5-9"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
