// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tokens for registries (distribution `docs/spec/auth/token.md` and `oauth.md`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use resnap_core::{Credential, Kind, Secret};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::address::{is_private, shown};
use crate::failure::Failure;
use crate::refusal::{body, refused};
use crate::request::{Request, Way};

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Zeroizing<String>,
    #[serde(default)]
    access_token: Zeroizing<String>,
}

/// The actions that a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
    Delete,
}

impl Access {
    /// Returns the end of the scope.
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
            Self::Delete => "pull,push,delete",
        }
    }
}

/// The properties of a token that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    /// The scope that the registry named.
    pub(crate) scope: Option<&'a str>,
    /// The path of the repository.
    pub(crate) path: &'a str,
    pub(crate) access: Access,
}

/// Gets a token. A credential is sent only to a realm that nobody on the network can
/// listen to.
pub(crate) async fn request(
    way: Way<'_>,
    wanted: Wanted<'_>,
    credential: Option<&Credential>,
) -> Result<Secret, Failure> {
    let realm = realm(wanted.realm)?;
    if credential.is_some() && !is_private(&realm) {
        let text = format!(
            "{}: no credential is sent to a token server without https",
            shown(&realm)
        );
        return Err(Failure::new(Kind::FailedPrecondition, text));
    }
    let scope = scope(wanted);
    let mut own = HeaderMap::new();
    let response = match credential {
        Some(Credential::IdentityToken(token)) => {
            let mut form = Zeroizing::new(String::with_capacity(3 * token.expose().len() + 2048));
            let fields = [
                ("grant_type", "refresh_token"),
                ("client_id", "resnap"),
                ("service", wanted.service.unwrap_or_default()),
                ("scope", &scope),
                ("refresh_token", token.expose()),
            ];
            for (name, value) in fields {
                let separator = if form.is_empty() { "" } else { "&" };
                form.extend([separator, name, "="]);
                form.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
            }
            way.post(&realm, form).await?
        }
        credential => {
            let mut url = realm.clone();
            if let Some(service) = wanted.service {
                url.query_pairs_mut().append_pair("service", service);
            }
            url.query_pairs_mut().append_pair("scope", &scope);
            if let Some(value) = credential.and_then(basic) {
                own.insert(AUTHORIZATION, value);
            }
            let request = Request {
                own,
                ..Request::default()
            };
            way.ask(&url, &request).await?
        }
    };
    if !response.status().is_success() {
        return Err(refused(&realm, response, way.stall).await);
    }
    let invalid = || {
        let text = format!("{}: the answer has no token", shown(&realm));
        Failure::new(Kind::Unavailable, text)
    };
    let body = body(response, way.stall).await.ok_or_else(invalid)?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| invalid())?;
    let token = if answer.token.is_empty() {
        answer.access_token
    } else {
        answer.token
    };
    if token.is_empty() {
        return Err(invalid());
    }
    Ok(Secret::from(token.as_str()))
}

/// Parses the address of a token server.
fn realm(text: &str) -> Result<Url, Failure> {
    let realm = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
    });
    realm.ok_or_else(|| {
        Failure::new(
            Kind::Unavailable,
            "the registry names no usable token server",
        )
    })
}

/// Returns the scope to ask for: of the repository that the registry named, if it named one alone, since behind a
/// mirror it may have another name. The actions are ours: the first request needs only some.
fn scope(wanted: Wanted<'_>) -> String {
    let named = wanted.scope.and_then(|scope| {
        let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        let is_usable = scope.len() <= 512 && !scope.contains(char::is_whitespace);
        let mut actions = actions.split(',');
        let is_asked =
            actions.all(|action| wanted.access.actions().split(',').any(|own| own == action));
        (is_usable && is_asked).then_some(name)
    });
    let name = named.unwrap_or(wanted.path);
    format!("repository:{name}:{}", wanted.access.actions())
}

/// Returns the header with a name and a password; `None` for another credential.
pub(crate) fn basic(credential: &Credential) -> Option<HeaderValue> {
    let Credential::Basic { username, password } = credential else {
        return None;
    };
    let (username, password) = (username.expose(), password.expose());
    let mut pair = Zeroizing::new(String::with_capacity(username.len() + password.len() + 1));
    pair.extend([username, ":", password]);
    // As large as base64 makes it: a text that grows leaves copies.
    let mut text = Zeroizing::new(String::with_capacity(6 + pair.len().div_ceil(3) * 4));
    text.push_str("Basic ");
    STANDARD.encode_string(pair.as_bytes(), &mut text);
    header(text)
}

/// Returns the header with a token.
pub(crate) fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut text = Zeroizing::new(String::with_capacity(7 + token.expose().len()));
    text.push_str("Bearer ");
    text.push_str(token.expose());
    header(text)
}

/// Makes a header whose memory is zeroed when it is dropped, and whose value nothing prints.
fn header(text: Zeroizing<String>) -> Option<HeaderValue> {
    struct Owner(Zeroizing<String>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let bytes = bytes::Bytes::from_owner(Owner(text));
    let mut value = HeaderValue::from_maybe_shared(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_hold_credentials_and_print_nothing() {
        let value = basic(&Credential::Basic {
            username: "u".into(),
            password: "p:q".into(),
        });
        let value = value.unwrap();
        assert_eq!(value.as_bytes(), b"Basic dTpwOnE=");
        assert!(!format!("{value:?}").contains("dTpw"));
        assert_eq!(bearer(&"t".into()).unwrap().as_bytes(), b"Bearer t");
        assert!(bearer(&"t\nx: y".into()).is_none());
        assert!(basic(&Credential::IdentityToken("x".into())).is_none());
    }

    #[test]
    fn no_scope_but_for_pulling_is_asked_for() {
        let wanted = |scope| Wanted {
            realm: "",
            service: None,
            scope,
            path: "a/b",
            access: Access::Pull,
        };
        assert_eq!(scope(wanted(None)), "repository:a/b:pull");
        assert_eq!(
            scope(wanted(Some("repository:p/a/b:pull"))),
            "repository:p/a/b:pull"
        );
        for other in [
            "repository:x:pull,push",
            "registry:catalog:*",
            "repository:x:push y:pull",
        ] {
            assert_eq!(scope(wanted(Some(other))), "repository:a/b:pull");
        }
    }

    #[test]
    fn pushing_needs_one_token_for_all_requests() {
        let wanted = |scope, access| Wanted {
            realm: "",
            service: None,
            scope: Some(scope),
            path: "a/b",
            access,
        };
        for (named, access, expected) in [
            (
                "repository:p/a:pull",
                Access::Push,
                "repository:p/a:pull,push",
            ),
            (
                "repository:p/a:push,pull",
                Access::Push,
                "repository:p/a:pull,push",
            ),
            ("repository:p/a:*", Access::Push, "repository:a/b:pull,push"),
            (
                "repository:p/a:delete",
                Access::Push,
                "repository:a/b:pull,push",
            ),
            (
                "repository:p/a:delete",
                Access::Delete,
                "repository:p/a:pull,push,delete",
            ),
        ] {
            assert_eq!(scope(wanted(named, access)), expected, "{named}");
        }
    }
}
