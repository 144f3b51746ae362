// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Challenges of servers for credentials (RFC 9110 section 11; the distribution specification's tokens).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// The limit on the number of parameters of one response's challenges.
const MAX_PARAMETERS: usize = 64;

/// The credential that a server asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A name and a password.
    Basic,
    /// A token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Returns the challenge of a response: the first one for a token, else one for a password.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for (scheme, parameters) in value.to_str().map(parse).unwrap_or_default() {
                let get = |name: &str| {
                    let found = parameters
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                } else if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = get("realm")
                {
                    return Some(Self::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Splits a header into its challenges, each a scheme with parameters.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    for _ in 0..MAX_PARAMETERS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            challenges.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = parameter(value.trim_start());
        rest = after;
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.push((word.to_owned(), value));
        }
    }
    challenges
}

/// Reads one value, quoted or not, and returns the rest.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_of_registries_are_read() {
        assert_eq!(
            of(&[r#"Bearer realm="https://a.b/t",service="r",scope="repository:x:pull,push""#]),
            bearer("https://a.b/t", Some("r"), Some("repository:x:pull,push"))
        );
        assert_eq!(
            of(&["bearer realm=https://a.b/t"]),
            bearer("https://a.b/t", None, None)
        );
        assert_eq!(
            of(&[r#"Basic realm="a \"b\", c", Bearer realm = "https://a.b/t""#]),
            bearer("https://a.b/t", None, None)
        );
        assert_eq!(
            of(&["Negotiate", r#"BASIC realm="x""#]),
            Some(Challenge::Basic)
        );
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn broken_challenges_are_none() {
        for value in [
            "",
            "=",
            "Bearer",
            "Bearer realm",
            r#"Bearer realm="#,
            ",,,",
            r#"x="y"#,
        ] {
            let challenge = of(&[value]);
            let realm = challenge.as_ref().map(|challenge| match challenge {
                Challenge::Bearer { realm, .. } => realm.as_str(),
                Challenge::Basic => "basic",
            });
            assert!(realm.is_none_or(str::is_empty), "{value}: {challenge:?}");
        }
    }
}
