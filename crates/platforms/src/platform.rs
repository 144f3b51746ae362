// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The platform: its JSON, its text forms, and that of the host.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::escape::escape_into;
use crate::normalize::{HOST_OS, normalize_architecture, normalize_os};

/// The platform that an image needs, or that a node offers, to run a container.
///
/// Serialises as the `platform` object of OCI image-spec `image-index.md`; an image config has the same
/// fields. An absent or null field becomes empty, an empty field is not written, and unknown fields are
/// ignored.
///
/// [`Display`](fmt::Display) is `FormatAll` of containerd/platforms
/// (`platforms.go`), with version and features; [`FromStr`](std::str::FromStr) is its `Parse`
/// with the missing half taken from [`Platform::host`].
///
/// Equality compares the fields as they are: compare [normalised](Platform::normalized) platforms, or
/// use a [`Matcher`](crate::Matcher).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Operating system by its Go name, such as `linux`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os: String,
    /// CPU architecture by its Go name, such as `amd64`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub architecture: String,
    /// Variant of the architecture, such as `v7` of `arm`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    /// Version of the operating system; only Windows is matched by it.
    #[serde(
        rename = "os.version",
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Required features of the operating system, such as `erofs`, in the given order.
    #[serde(
        rename = "os.features",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

impl Platform {
    /// Returns the platform of this machine, without features (`DefaultSpec` in `defaults_unix.go`).
    ///
    /// The variant is empty except on ARM, where it is the one that the
    /// target's name stands for (`arm64/v8`, `arm/v7`). The reference looks at
    /// `/proc/cpuinfo` instead; a node whose CPU is older or newer than that
    /// has to be described by an explicit platform.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86" => ("386", ""),
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "loongarch64" => ("loong64", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            same => (same, ""),
        };
        Self {
            os: HOST_OS.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the canonical form (`Normalize` in `platforms.go`): names in lower case and by their Go
    /// spelling, a variant that is the architecture's usual one removed (or, for `arm`, added), features
    /// sorted and without duplicates.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let (architecture, variant) = normalize_architecture(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            os: normalize_os(&self.os),
            architecture,
            variant,
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    /// Returns `os/architecture/variant` without version and features (`Format` in `platforms.go`);
    /// `unknown` if there is no operating system.
    pub fn format(&self) -> String {
        self.join("")
    }

    /// Joins the components, with `options` after the operating system.
    fn join(&self, options: &str) -> String {
        if self.os.is_empty() {
            return "unknown".to_owned();
        }
        let mut joined = String::new();
        escape_into(&mut joined, &self.os);
        joined.push_str(options);
        for component in [&self.architecture, &self.variant] {
            if !component.is_empty() {
                joined.push('/');
                escape_into(&mut joined, component);
            }
        }
        joined
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut features: Vec<&str> = self.os_features.iter().map(String::as_str).collect();
        features.retain(|feature| !feature.is_empty());
        features.sort_unstable();
        features.dedup();

        let mut options = String::new();
        if !self.os_version.is_empty() || !features.is_empty() {
            options.push('(');
            escape_into(&mut options, &self.os_version);
            for feature in features {
                options.push('+');
                escape_into(&mut options, feature);
            }
            options.push(')');
        }
        f.pad(&self.join(&options))
    }
}

// resnap-core has the same function, but depends on this crate.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Platform {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn null_absent_and_unknown_fields_are_empty() {
        let nulls = r#"{"architecture":null,"os":null,"os.version":null,"os.features":null,"variant":null}"#;
        for text in ["{}", nulls, r#"{"features":["sse4"],"os.feature":1}"#] {
            assert_eq!(json(text), Platform::default(), "{text}");
        }
        assert_eq!(serde_json::to_string(&Platform::default()).unwrap(), "{}");
    }

    #[test]
    fn wrong_types_are_errors() {
        for text in [r#"{"os":1}"#, r#"{"os.features":"erofs"}"#, "[1]", "null"] {
            let error = serde_json::from_str::<Platform>(text).unwrap_err();
            assert!(
                error.to_string().starts_with("invalid type: "),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn json_uses_the_names_of_the_specification() {
        let text = r#"{"os":"linux","architecture":"arm","variant":"v7","os.version":"6.1","os.features":["erofs","a"]}"#;
        let platform = json(text);
        assert_eq!(platform.os_features, ["erofs", "a"]);
        assert_eq!(serde_json::to_string(&platform).unwrap(), text);
    }

    #[test]
    fn formatted_platforms_parse_back() {
        for os_version in ["", "6.1", "1+2", "é\n", "*"] {
            for features in [
                &[][..],
                &["erofs"],
                &["z", "a", "z"],
                &["a+b", "c/d", "e(f)", "g%h"],
                &["*", " ", "\u{1b}[31m", "日本", "%2B"],
            ] {
                for (architecture, variant) in [("amd64", "v1"), ("arm", ""), ("arm64", "v8")] {
                    let platform = Platform {
                        os: "Linux".to_owned(),
                        architecture: architecture.to_owned(),
                        variant: variant.to_owned(),
                        os_version: os_version.to_owned(),
                        os_features: features.iter().map(|f| (*f).to_owned()).collect(),
                    };
                    let text = platform.to_string();
                    assert!(
                        text.is_ascii() && !text.contains(char::is_control),
                        "{text:?}"
                    );
                    let parsed: Platform = text.parse().unwrap();
                    assert_eq!(parsed.normalized(), platform.normalized(), "{text}");
                }
            }
        }
    }

    #[test]
    fn no_part_of_a_hostile_platform_is_shown_raw() {
        let odd = "a\u{1b}[31m\nb".to_owned();
        let platform = Platform {
            os: odd.clone(),
            architecture: odd.clone(),
            variant: odd.clone(),
            os_version: odd.clone(),
            os_features: vec![odd],
        };
        for text in [platform.to_string(), platform.format()] {
            assert!(
                text.is_ascii() && !text.contains(char::is_control),
                "{text:?}"
            );
        }
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        for text in [
            "linux/armhf/v6",
            "linux/arm64/9.0",
            "macos/x86_64/v1",
            "linux(+b+a+b)/i386/x",
        ] {
            let once = text.parse::<Platform>().unwrap().normalized();
            assert_eq!(once.normalized(), once, "{text}");
        }
    }

    #[test]
    fn the_host_is_linux_without_features() {
        let host = Platform::host();
        assert_eq!(host.os, "linux");
        assert!(!host.architecture.is_empty() && host.os_features.is_empty());
        assert_eq!(
            "linux".parse::<Platform>().unwrap().architecture,
            host.architecture
        );
    }
}
