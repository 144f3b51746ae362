// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Answers by which servers refuse a request.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, Url};
use resnap_core::Kind;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::address::shown;
use crate::failure::{Failure, Retry};

/// The limit on the size of an error's or token's body.
const MAX_BODY: usize = 64 << 10;

/// The limit on the wait that a server asks for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Returns the failure that a response with a status other than success is.
pub(crate) async fn refused(url: &Url, response: Response, stall: Duration) -> Failure {
    let status = response.status();
    let wait = retry_after(response.headers(), SystemTime::now());
    let body = body(response, stall).await.unwrap_or_default();
    let reason = reason(&body);
    let is_unsupported = reason
        .as_ref()
        .is_some_and(|reason| reason.starts_with("UNSUPPORTED"));
    let reason = reason.map(|reason| format!(" ({reason})"));
    let text = format!("{}: {status}{}", shown(url), reason.unwrap_or_default());
    let (kind, is_worth) = match status.as_u16() {
        401 => (Kind::Unauthenticated, false),
        403 => (Kind::PermissionDenied, false),
        404 | 410 => (Kind::NotFound, false),
        405 => (Kind::Unimplemented, false),
        408 => (Kind::Unavailable, true),
        416 => (Kind::DataLoss, false),
        429 => (Kind::ResourceExhausted, true),
        500 | 502 | 503 | 504 => (Kind::Unavailable, true),
        _ if is_unsupported => (Kind::Unimplemented, false),
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

/// Returns the failure of a server that is not the registry's. It asks for no credential that there
/// could be.
pub(crate) async fn foreign(response: Response, stall: Duration) -> Failure {
    let url = response.url().clone();
    let mut failure = refused(&url, response, stall).await;
    if matches!(failure.kind, Kind::Unauthenticated | Kind::PermissionDenied) {
        failure.kind = Kind::Unavailable;
    }
    failure
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
    fn the_reason_of_a_registry_is_read() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no","detail":{"secret":1}}]}"#;
        assert_eq!(reason(body).as_deref(), Some("DENIED no"));
        assert_eq!(reason(b"<html>"), None);
        assert_eq!(reason(b"{}"), None);
    }
}
