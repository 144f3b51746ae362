// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lists of referrers (distribution specification, "Listing Referrers").

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, Url};
use resnap_core::{Digest, Kind, Referrer, ReferrerList, Result, media_type};
use tokio::time::{sleep, timeout};

use crate::address::{same_origin, shown};
use crate::asked::Asked;
use crate::document::document;
use crate::failure::{Failure, causes, error};
use crate::link;
use crate::session::{Session, Shared};

/// The limit on the number of times that a host is asked.
const MAX_ATTEMPTS: u32 = 3;

/// The limit on the time for the list of one host, in stalls.
const MAX_STALLS: u32 = 2;

/// The search for the referrers of a manifest.
pub(crate) struct Search<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) subject: &'a Digest,
    pub(crate) artifact_types: &'a [&'a str],
}

impl<'a> Search<'a> {
    /// The operation in errors.
    pub(crate) const OPERATION: &'static str = "list the referrers of";

    /// Asks one host after the other until one lists referrers. `failures` are those of hosts that cannot be
    /// asked. None is an answer if the registry itself gave it, or a mirror did and no other host wants
    /// credentials.
    pub(crate) async fn run(
        &self,
        mut sessions: Vec<Session>,
        mut failures: Vec<Failure>,
    ) -> Result<Vec<Referrer>> {
        let (mut has_answered, mut is_settled) = (false, false);
        for attempt in 1..=MAX_ATTEMPTS {
            let (mut again, mut wait) = (Vec::new(), Duration::ZERO);
            for mut session in sessions {
                match self.timed(&mut session).await {
                    Ok(found) if !found.is_empty() => return Ok(found),
                    Ok(_) => {
                        has_answered = true;
                        is_settled |= session.is_registry();
                    }
                    Err(failure) => {
                        tracing::debug!(subject = %self.subject, failure = failure.text, "a source lists no referrers");
                        let backoff = self.shared.settings.backoff;
                        match failure.retry.wait(backoff, attempt) {
                            Some(least) if attempt < MAX_ATTEMPTS => {
                                wait = wait.max(least);
                                again.push(session);
                            }
                            _ => failures.push(failure),
                        }
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            sessions = again;
            sleep(wait).await;
        }
        let is_refused = failures
            .iter()
            .any(|failure| matches!(failure.kind, Kind::Unauthenticated | Kind::PermissionDenied));
        if is_settled || (has_answered && !is_refused) {
            return Ok(Vec::new());
        }
        Err(error(Self::OPERATION, self.subject.as_str(), &failures))
    }

    async fn timed(&self, session: &mut Session) -> Result<Vec<Referrer>, Failure> {
        let limit = self.shared.settings.stall.saturating_mul(MAX_STALLS);
        let name = session.name();
        timeout(limit, self.list(session))
            .await
            .unwrap_or_else(|_| {
                let text = format!(
                    "{name}: the list took longer than {} s",
                    limit.as_secs_f32()
                );
                Err(Failure::new(Kind::DeadlineExceeded, text))
            })
    }

    async fn list(&self, session: &mut Session) -> Result<Vec<Referrer>, Failure> {
        let mut list = ReferrerList::new(self.subject, self.artifact_types);
        let mut left = ReferrerList::MAX_DOCUMENTS;
        for artifact_type in self.artifact_types {
            let asked = Asked::Referrers(self.subject, artifact_type);
            let first = found(session.ask(self.shared, asked).await)?;
            let Some(first) = first.filter(is_index) else {
                self.tagged(session, &mut list).await?;
                break;
            };
            self.pages(session, first, &mut left, &mut list).await?;
        }
        Ok(list.into_found())
    }

    /// Adds the pages of a list, from the first on.
    async fn pages(
        &self,
        session: &mut Session,
        first: Response,
        left: &mut usize,
        list: &mut ReferrerList<'a>,
    ) -> Result<(), Failure> {
        let mut page = first;
        loop {
            let url = page.url().clone();
            let next = link::next(page.headers());
            *left = left.checked_sub(1).ok_or_else(|| {
                let limit = ReferrerList::MAX_DOCUMENTS;
                let text = format!("{}: the list has more than {limit} pages", shown(&url));
                Failure::new(Kind::ResourceExhausted, text)
            })?;
            self.add(page, list).await?;
            let Some(next) = next else {
                return Ok(());
            };
            let next = followed(session, &url, &next)?;
            page = session.ask(self.shared, Asked::Page(&next)).await?;
        }
    }

    /// Adds the index that clients keep under a tag, if there is one.
    async fn tagged(
        &self,
        session: &mut Session,
        list: &mut ReferrerList<'a>,
    ) -> Result<(), Failure> {
        let asked = Asked::ReferrersTag(self.subject);
        match found(session.ask(self.shared, asked).await)? {
            None => Ok(()),
            Some(index) => self.add(index, list).await,
        }
    }

    async fn add(&self, index: Response, list: &mut ReferrerList<'a>) -> Result<(), Failure> {
        let url = index.url().clone();
        if !is_index(&index) {
            let text = format!("{}: answers with no index", shown(&url));
            return Err(Failure::new(Kind::DataLoss, text));
        }
        let (stall, limit) = (self.shared.settings.stall, ReferrerList::MAX_DOCUMENT);
        let document = document(index, stall, limit).await?;
        list.add_index(&document).map_err(|error| {
            Failure::new(error.kind(), format!("{}: {}", shown(&url), causes(&error)))
        })
    }
}

/// Returns the response, or `None` if there is no such thing.
pub(crate) fn found(response: Result<Response, Failure>) -> Result<Option<Response>, Failure> {
    match response {
        Err(failure) if failure.kind == Kind::NotFound => Ok(None),
        response => response.map(Some),
    }
}

/// Returns whether a response is an index. A server that lists no referrers may answer with a page for
/// people.
pub(crate) fn is_index(response: &Response) -> bool {
    let media_type = response.headers().get(CONTENT_TYPE);
    let media_type = media_type.and_then(|media_type| media_type.to_str().ok());
    let media_type = media_type.and_then(|media_type| media_type.split(';').next());
    media_type.is_some_and(|name| name.trim().eq_ignore_ascii_case(media_type::OCI_INDEX))
}

/// Returns the address of the next page if it is at the same host.
fn followed(session: &Session, page: &Url, next: &str) -> Result<Url, Failure> {
    let url = page.join(next).ok().filter(|url| {
        session.is_at(url)
            && same_origin(url, page)
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(|| {
        let text = format!(
            "{}: the next page is {next:?}, which is not at this host",
            shown(page)
        );
        Failure::new(Kind::Unavailable, text)
    })
}
