// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Parsing of specifiers (`Parse` in containerd/platforms `platforms.go`).

use std::str::FromStr;

use crate::escape::is_option_byte;
use crate::normalize::{is_known_architecture, is_known_os, normalize_architecture, normalize_os};
use crate::{ParseError, Platform};

impl FromStr for Platform {
    type Err = ParseError;

    fn from_str(specifier: &str) -> Result<Self, Self::Err> {
        parse_with_default(specifier, &Self::host())
    }
}

/// Parses a specifier (`Parse` in `platforms.go`).
///
/// A single component is an operating system if it is known as one, else an architecture; the other
/// half is taken from `host`. Features keep their order, duplicates and case.
///
/// # Errors
/// [`ParseError`] names the rule of the grammar that the specifier breaks.
pub fn parse_with_default(specifier: &str, host: &Platform) -> Result<Platform, ParseError> {
    let refuse = |reason: fn(String) -> ParseError| reason(specifier.to_owned());
    if specifier.contains('*') {
        return Err(refuse(ParseError::Wildcard));
    }

    let mut components = specifier.split('/');
    let first = components.next().unwrap_or_default();
    let (name, options) = split_os(first).ok_or_else(|| refuse(ParseError::OperatingSystem))?;
    let mut platform = Platform {
        os: normalize_os(name),
        ..Platform::default()
    };
    if let Some(options) = options {
        let decode = |raw| decode(raw).ok_or_else(|| refuse(ParseError::Encoding));
        let mut options = options.split('+');
        platform.os_version = decode(options.next().unwrap_or_default())?;
        platform.os_features = options.map(decode).collect::<Result<_, _>>()?;
    }

    let (architecture, variant) = (components.next(), components.next());
    if components.next().is_some() {
        return Err(refuse(ParseError::TooManyComponents));
    }
    if ![architecture, variant]
        .into_iter()
        .flatten()
        .all(is_component)
    {
        return Err(refuse(ParseError::Component));
    }
    match (architecture, variant) {
        (None, _) if is_known_os(&platform.os) => {
            platform.architecture.clone_from(&host.architecture);
            if host.architecture == "arm" {
                platform.variant = unless_usual_arm(&host.architecture, host.variant.clone());
            }
        }
        (None, _) => {
            let (architecture, variant) = normalize_architecture(first, "");
            if !is_known_architecture(&architecture) {
                return Err(refuse(ParseError::Unknown));
            }
            platform.os.clone_from(&host.os);
            platform.variant = unless_usual_arm(&architecture, variant);
            platform.architecture = architecture;
        }
        (Some(architecture), None) => {
            let (architecture, variant) = normalize_architecture(architecture, "");
            platform.variant = unless_usual_arm(&architecture, variant);
            platform.architecture = architecture;
        }
        (Some(architecture), Some(variant)) => {
            (platform.architecture, platform.variant) =
                normalize_architecture(architecture, variant);
            // An explicit variant is kept.
            if platform.architecture == "arm64" && platform.variant.is_empty() {
                "v8".clone_into(&mut platform.variant);
            }
        }
    }
    Ok(platform)
}

/// Removes the variant v7 of `arm`, which is the default and omitted unless it is explicit.
fn unless_usual_arm(architecture: &str, variant: String) -> String {
    if architecture == "arm" && variant == "v7" {
        String::new()
    } else {
        variant
    }
}

/// Splits the first component into the name and the options in parentheses. The options are checked but
/// not decoded.
fn split_os(component: &str) -> Option<(&str, Option<&str>)> {
    let (name, options) = match component.split_once('(') {
        Some((name, rest)) => (name, Some(rest.strip_suffix(')')?)),
        None => (component, None),
    };
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        return None;
    }
    for (index, option) in options.into_iter().flat_map(|o| o.split('+')).enumerate() {
        let is_version = index == 0;
        if (option.is_empty() && !is_version) || !option.bytes().all(is_option_byte) {
            return None;
        }
    }
    Some((name, options))
}

fn is_component(component: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !component.is_empty() && component.bytes().all(allowed)
}

/// Decodes percent-encoding. Returns `None` if an escape is incomplete or not hexadecimal, or if the
/// result is not UTF-8.
fn decode(option: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(option.len());
    let mut bytes = option.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(architecture: &str, variant: &str) -> Platform {
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        }
    }

    #[test]
    fn the_missing_half_is_the_hosts() {
        for (specifier, host, expected) in [
            ("linux", host("arm64", "v8"), "linux/arm64"),
            ("linux", host("arm", "v7"), "linux/arm"),
            ("linux", host("arm", "v6"), "linux/arm/v6"),
            ("linux(+erofs)", host("arm", "v6"), "linux(+erofs)/arm/v6"),
            ("amd64", host("arm64", "v8"), "linux/amd64"),
            ("linux/amd64", host("arm64", "v8"), "linux/amd64"),
        ] {
            assert_eq!(
                parse_with_default(specifier, &host).unwrap().to_string(),
                expected
            );
        }
    }

    #[test]
    fn the_host_adds_no_features() {
        let mut host = host("amd64", "");
        host.os_features = vec!["erofs".to_owned()];
        assert_eq!(
            parse_with_default("linux", &host).unwrap().to_string(),
            "linux/amd64"
        );
        assert_eq!(
            parse_with_default("amd64", &host).unwrap().to_string(),
            "linux/amd64"
        );
    }

    #[test]
    fn each_refusal_names_its_reason() {
        for (specifier, reason) in [
            ("linux/*", ParseError::Wildcard as fn(String) -> ParseError),
            ("((((", ParseError::OperatingSystem),
            ("))", ParseError::OperatingSystem),
            ("%", ParseError::OperatingSystem),
            ("linux()()", ParseError::OperatingSystem),
            ("linux(+a", ParseError::OperatingSystem),
            ("linüx/amd64", ParseError::OperatingSystem),
            ("linux(%)", ParseError::Encoding),
            ("linux(+%4)", ParseError::Encoding),
            ("linux(+%+a)", ParseError::Encoding),
            ("linux(+%ff)", ParseError::Encoding),
            ("linux/amd64\n", ParseError::Component),
            ("linux//v8", ParseError::Component),
            ("linux/a/b/c/d", ParseError::TooManyComponents),
            ("linux1", ParseError::Unknown),
        ] {
            let expected = reason(specifier.to_owned());
            assert_eq!(
                parse_with_default(specifier, &host("amd64", "")),
                Err(expected)
            );
        }
    }

    #[test]
    fn every_short_string_is_refused_or_round_trips() {
        let host = host("amd64", "");
        let mut level = vec![String::new()];
        for _ in 0..6 {
            level = level
                .iter()
                .flat_map(|prefix| {
                    "a(+)%2/."
                        .chars()
                        .map(move |next| format!("{prefix}{next}"))
                })
                .collect();
            for specifier in &level {
                let Ok(platform) = parse_with_default(specifier, &host) else {
                    continue;
                };
                let again = parse_with_default(&platform.to_string(), &host).unwrap();
                assert_eq!(again.normalized(), platform.normalized(), "{specifier}");
            }
        }
    }

    #[test]
    fn long_strings_end_soon() {
        let host = host("amd64", "");
        for (unit, error) in [
            ("(", ParseError::OperatingSystem as fn(String) -> ParseError),
            ("%", ParseError::OperatingSystem),
            ("/", ParseError::OperatingSystem),
            ("+a", ParseError::OperatingSystem),
            ("a", ParseError::Unknown),
            ("(+", ParseError::OperatingSystem),
            ("\u{130}", ParseError::OperatingSystem),
        ] {
            let long = unit.repeat(300_000);
            let parsed = parse_with_default(&long, &host);
            assert!(parsed == Err(error(long.clone())), "{unit:?}");
            drop(parse_with_default(&format!("linux({long})"), &host));
        }
        let many = format!("linux({})", "+a".repeat(300_000));
        assert_eq!(
            parse_with_default(&many, &host).unwrap().to_string(),
            "linux(+a)/amd64"
        );
    }
}
