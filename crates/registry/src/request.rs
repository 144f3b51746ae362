// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Single requests. Redirects are followed here, since each hop decides what the next server may see.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use resnap_core::Kind;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::address::{is_inwards, is_private, same_origin, shown};
use crate::clients::Clients;
use crate::failure::{Failure, Retry, causes};
use crate::tls::Material;

/// The limit on the number of redirects.
const MAX_REDIRECTS: usize = 10;

/// The limit on the size of an error's or token's body.
const MAX_BODY: usize = 64 << 10;

/// The limit on the wait that a server asks for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The way to reach a server.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) material: &'a Material,
    pub(crate) connect: Duration,
    pub(crate) stall: Duration,
    /// Whether redirects lead only to addresses that nobody on the network can listen to.
    pub(crate) is_private: bool,
}

impl Way<'_> {
    /// Gets an address. `own` are the headers for its server only: a redirect to another scheme, host
    /// or port goes without them and without a client certificate, and so do the redirects after it.
    pub(crate) async fn get(
        &self,
        url: &Url,
        own: &HeaderMap,
        all: &HeaderMap,
    ) -> Result<Response, Failure> {
        let others = self.material.for_others();
        let mut url = url.clone();
        let mut is_own = true;
        for _ in 0..=MAX_REDIRECTS {
            let material = if is_own { self.material } else { &others };
            let client = self.clients.get(material, &url, self.connect)?;
            let mut request = client.get(url.clone()).headers(all.clone());
            if is_own {
                request = request.headers(own.clone());
            }
            let response = self.send(&url, request).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let next = location(&url, &response)?;
            if !self.may_redirect(&url, &next) {
                let text = format!(
                    "{} redirects to {}, which is not followed",
                    shown(&url),
                    shown(&next)
                );
                return Err(Failure::new(Kind::Unavailable, text));
            }
            is_own &= same_origin(&url, &next);
            url = next;
        }
        let text = format!("{}: more than {MAX_REDIRECTS} redirects", shown(&url));
        Err(Failure::new(Kind::Unavailable, text))
    }

    /// Returns whether a redirect is followed: not from HTTPS to HTTP, and not inwards.
    fn may_redirect(&self, from: &Url, to: &Url) -> bool {
        let is_downgrade = from.scheme() == "https" && to.scheme() != "https";
        let is_inwards = is_inwards(to) && !is_inwards(from);
        !is_downgrade && !is_inwards && (is_private(to) || !self.is_private)
    }

    /// Posts a form. No redirect is followed.
    pub(crate) async fn post(
        &self,
        url: &Url,
        form: Zeroizing<String>,
    ) -> Result<Response, Failure> {
        let client = self.clients.get(self.material, url, self.connect)?;
        let request = client
            .post(url.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(bytes::Bytes::from_owner(Form(form)));
        self.send(url, request).await
    }

    /// Sends one request, and waits for the head of the response.
    async fn send(&self, url: &Url, request: RequestBuilder) -> Result<Response, Failure> {
        match timeout(self.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unsent(url, &error)),
            Err(_) => Err(stalled(url, self.stall)),
        }
    }
}

struct Form(Zeroizing<String>);

impl AsRef<[u8]> for Form {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Returns the failure of a server that sends nothing.
pub(crate) fn stalled(url: &Url, stall: Duration) -> Failure {
    let text = format!("{}: nothing came for {} s", shown(url), stall.as_secs_f32());
    Failure::new(Kind::DeadlineExceeded, text)
}

/// Returns the failure of a request without a response.
fn unsent(url: &Url, error: &reqwest::Error) -> Failure {
    let tls = tls_error(error);
    let text = format!("{}: {}", shown(url), causes(error));
    let mut failure = Failure::new(Kind::Unavailable, text);
    failure.is_plain = matches!(tls, Some(rustls::Error::InvalidMessage(_)));
    let is_permanent = matches!(
        tls,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidMessage(_))
    ) || error.is_builder();
    if is_permanent {
        failure
    } else {
        failure.worth(Retry::Soon)
    }
}

/// Returns the TLS error among the causes of an error.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        // An error of I/O is not the source of itself, but what it holds may be.
        let held = error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref());
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns where a response redirects to.
fn location(url: &Url, response: &Response) -> Result<Url, Failure> {
    let location = response.headers().get(LOCATION);
    let next = location.and_then(|location| url.join(location.to_str().ok()?).ok());
    let is_usable = |next: &Url| {
        matches!(next.scheme(), "http" | "https")
            && next.username().is_empty()
            && next.password().is_none()
    };
    next.filter(is_usable).ok_or_else(|| {
        let text = format!(
            "{}: {} to an unusable address",
            shown(url),
            response.status()
        );
        Failure::new(Kind::Unavailable, text)
    })
}

/// Returns the failure that a response with a status other than success is.
pub(crate) async fn refused(url: &Url, response: Response, stall: Duration) -> Failure {
    let status = response.status();
    let wait = retry_after(response.headers(), SystemTime::now());
    let body = body(response, stall).await.unwrap_or_default();
    let reason = reason(&body).map(|reason| format!(" ({reason})"));
    let text = format!("{}: {status}{}", shown(url), reason.unwrap_or_default());
    let (kind, is_worth) = match status.as_u16() {
        401 => (Kind::Unauthenticated, false),
        403 => (Kind::PermissionDenied, false),
        404 | 410 => (Kind::NotFound, false),
        408 => (Kind::Unavailable, true),
        416 => (Kind::DataLoss, false),
        429 => (Kind::ResourceExhausted, true),
        500 | 502 | 503 | 504 => (Kind::Unavailable, true),
        _ => (Kind::Unavailable, false),
    };
    let failure = Failure::new(kind, text);
    match (is_worth, wait) {
        (false, _) => failure,
        (true, None) => failure.worth(Retry::Soon),
        (true, Some(wait)) => failure.worth(Retry::After(wait)),
    }
}

/// Returns how long a server asks to wait (RFC 9110 section 10.2.3), up to a limit.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = httpdate::parse_http_date(text).ok()?;
            until.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Returns the code and the message of an error's body (distribution specification, "Error Codes").
fn reason(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = body.get("errors")?.get(0)?;
    let text = |key: &str| {
        error
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
    };
    let mut reason = format!("{} {}", text("code"), text("message"));
    reason.truncate(reason.floor_char_boundary(160));
    Some(reason.trim().to_owned()).filter(|reason| !reason.is_empty())
}

/// Reads a small body; `None` if it is larger, breaks, or does not come within `limit`.
pub(crate) async fn body(response: Response, limit: Duration) -> Option<Zeroizing<Vec<u8>>> {
    // All of it at once, since a vector that grows leaves copies.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
    let mut pieces = response.bytes_stream();
    let read = async {
        while let Some(piece) = pieces.next().await {
            let piece = piece.ok()?;
            if body.len() + piece.len() > MAX_BODY {
                return None;
            }
            body.extend_from_slice(&piece);
        }
        Some(())
    };
    timeout(limit, read).await.ok()??;
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_dates_and_limited() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 12:00:00 GMT").unwrap();
        let wait = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("99999999999"), Some(60));
        assert_eq!(wait("Fri, 27 Nov 2026 12:00:05 GMT"), Some(5));
        assert_eq!(wait("Fri, 27 Nov 2026 11:00:05 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn redirects_lead_neither_to_plain_http_nor_inwards() {
        for (from, to, is_private, follows) in [
            ("https://a.b", "https://c.d", false, true),
            ("https://a.b", "http://a.b", false, false),
            ("https://a.b", "http://127.0.0.1", false, false),
            ("http://a.b", "http://c.d", false, true),
            ("http://a.b", "http://c.d", true, false),
            ("http://a.b", "https://c.d", true, true),
            ("http://a.b", "http://localhost:10255", false, false),
            ("http://[::1]", "http://127.0.0.1", true, true),
        ] {
            let way = Way {
                clients: &Clients::default(),
                material: &Material::default(),
                connect: Duration::ZERO,
                stall: Duration::ZERO,
                is_private,
            };
            let url = |text: &str| Url::parse(text).unwrap();
            assert_eq!(
                way.may_redirect(&url(from), &url(to)),
                follows,
                "{from} {to}"
            );
        }
    }

    #[test]
    fn the_reason_of_a_registry_is_read() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no","detail":{"secret":1}}]}"#;
        assert_eq!(reason(body).as_deref(), Some("DENIED no"));
        assert_eq!(reason(b"<html>"), None);
        assert_eq!(reason(b"{}"), None);
    }
}
