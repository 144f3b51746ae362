// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Single requests. Redirects are followed here, since each hop decides what the next server may see.

use std::error::Error as StdError;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};
use resnap_core::Kind;
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::address::{is_inwards, is_private, same_origin, shown};
use crate::clients::Clients;
use crate::failure::{Failure, Retry, causes};
use crate::tls::Material;
use crate::upload::Upload;

/// The limit on the number of redirects.
const MAX_REDIRECTS: usize = 10;

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
    /// Sends a request to an address. What is for its server only stays there: a redirect to another scheme, host
    /// or port goes without it, and so do the redirects after it. What changes something is not redirected.
    pub(crate) async fn ask(&self, url: &Url, asked: &Request) -> Result<Response, Failure> {
        let others = self.material.for_others();
        let mut url = url.clone();
        let mut is_own = true;
        for _ in 0..=MAX_REDIRECTS {
            let material = if is_own { self.material } else { &others };
            let client = self.clients.get(material, &url, self.connect)?;
            let request = client.request(asked.method.clone(), url.clone());
            let mut request = request.headers(asked.all.clone());
            if is_own {
                request = request.headers(asked.own.clone());
            }
            if let Some(body) = &asked.body {
                request = request.body(body.clone());
            }
            let response = self.send(&url, request).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let next = location(&url, &response)?;
            if !asked.method.is_safe() || !self.may_redirect(&url, &next) {
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
            .body(Bytes::from_owner(Form(form)));
        self.send(url, request).await
    }

    /// Puts a body to the address that a server gave for it, `to`, in its answer from `from`, for as long as it
    /// takes bytes.
    pub(crate) async fn upload(
        &self,
        (from, to): (&Url, &Url),
        own: HeaderMap,
        upload: &Upload,
        body: Body,
    ) -> Result<Response, Failure> {
        if !same_origin(from, to) && !self.may_redirect(from, to) {
            let (from, to) = (shown(from), shown(to));
            let text = format!("{from} wants the blob at {to}, which is not followed");
            return Err(Failure::new(Kind::Unavailable, text));
        }
        let client = self.clients.get(self.material, to, self.connect)?;
        let request = client.put(to.clone()).headers(own);
        let request = request
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, upload.size())
            .body(body);
        let mut response = pin!(request.send());
        loop {
            match timeout_at(upload.until(self.stall), &mut response).await {
                Ok(response) => return response.map_err(|error| unsent(to, &error)),
                Err(_) if upload.until(self.stall) <= Instant::now() => {
                    let limit = upload.limit(self.stall).as_secs_f32();
                    let text = format!(
                        "{}: it took no bytes and did not answer for {limit} s",
                        shown(to)
                    );
                    return Err(Failure::new(Kind::DeadlineExceeded, text));
                }
                Err(_) => {}
            }
        }
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

/// A request without its address.
#[derive(Default)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The headers for the address's own server only.
    pub(crate) own: HeaderMap,
    /// The headers for all servers.
    pub(crate) all: HeaderMap,
    pub(crate) body: Option<Bytes>,
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

/// Returns where a response leads to.
pub(crate) fn location(url: &Url, response: &Response) -> Result<Url, Failure> {
    let location = response.headers().get(LOCATION);
    let next = location.and_then(|location| url.join(location.to_str().ok()?).ok());
    let is_usable = |next: &Url| {
        matches!(next.scheme(), "http" | "https")
            && next.username().is_empty()
            && next.password().is_none()
    };
    next.filter(is_usable).ok_or_else(|| {
        let text = format!(
            "{}: {} leads to an unusable address",
            shown(url),
            response.status()
        );
        Failure::new(Kind::Unavailable, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
