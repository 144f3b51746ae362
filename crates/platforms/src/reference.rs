// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Replays the answers of the reference implementation,
//! `testdata/platform-vectors.tsv`: computed with containerd/platforms
//! v1.0.0-rc.4 on linux/amd64. Columns: kind, matcher or subject, candidates,
//! answer.

use crate::vector::vector;
use crate::{Matcher, ParseError, Platform, parse_with_default};

const VECTORS: &str = include_str!("../testdata/platform-vectors.tsv");

/// The machine the answers were computed on; never the one the test runs on.
fn host() -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..Platform::default()
    }
}

fn specifier(text: &str) -> Result<Platform, ParseError> {
    parse_with_default(text, &host())
}

/// A platform is given as a specifier or as JSON.
fn platform(text: &str) -> Platform {
    if text.starts_with('{') {
        serde_json::from_str(text).unwrap()
    } else {
        specifier(text).unwrap()
    }
}

fn platforms(text: &str, separator: char) -> Vec<Platform> {
    text.split(separator).map(platform).collect()
}

fn joined<'a>(platforms: impl IntoIterator<Item = &'a Platform>) -> String {
    let texts: Vec<String> = platforms.into_iter().map(Platform::to_string).collect();
    texts.join(" ")
}

fn json(platform: &Platform) -> serde_json::Value {
    serde_json::to_value(platform).unwrap()
}

fn matcher(name: &str, a: &str) -> Option<Matcher> {
    Some(match name {
        "only" => Matcher::only(&platform(a)),
        "onlystrict" | "newmatcher" => Matcher::only_strict(&platform(a)),
        "onlyos" => Matcher::only_os(&platform(a)),
        "ordered" => Matcher::ordered(&platforms(a, ';')),
        "any" => Matcher::any(&platforms(a, ';')),
        "all" => Matcher::all(),
        "default" => Matcher::only(&host()),
        "defaultstrict" => Matcher::only_strict(&host()),
        _ => return None,
    })
}

/// `None` for a kind that is not known.
fn is_right(kind: &str, a: &str, b: &str, expected: &str) -> Option<bool> {
    let same_json = |platform: &Platform| {
        json(platform) == serde_json::from_str::<serde_json::Value>(expected).unwrap()
    };
    Some(match kind {
        "parse" => match specifier(a) {
            Ok(platform) => !expected.starts_with("ERR ") && same_json(&platform),
            Err(_) => expected.starts_with("ERR "),
        },
        "format" => platform(a).format() == expected,
        "formatall" => platform(a).to_string() == expected,
        "normalize" => same_json(&platform(a).normalized()),
        "vector" => joined(&vector(&platform(a).normalized())) == expected,
        _ => {
            let (name, question) = kind.split_once('.').unwrap_or((kind, "match"));
            let matcher = matcher(name, a)?;
            match question {
                "match" => matcher.matches(&platform(b)).to_string() == expected,
                "less" => {
                    let (left, right) = b.split_once(" < ")?;
                    matcher.less(&platform(left), &platform(right)).to_string() == expected
                }
                "pick" => {
                    let candidates = platforms(b, ' ');
                    joined(matcher.pick(candidates.iter().map(|p| (Some(p), p)))) == expected
                }
                _ => return None,
            }
        }
    })
}

#[test]
fn every_answer_is_that_of_the_reference() {
    let mut rows = VECTORS.lines();
    assert_eq!(rows.next(), Some("kind\ta\tb\texpected"));
    let rows: Vec<&str> = rows.collect();
    assert_eq!(rows.len(), 248);

    let mut wrong = Vec::new();
    for row in rows {
        let columns: Vec<&str> = row.split('\t').collect();
        let [kind, a, b, expected] = columns[..] else {
            panic!("not four columns: {row}");
        };
        match is_right(kind, a, b, expected) {
            Some(true) => {}
            Some(false) => wrong.push(row),
            None => panic!("unknown kind: {row}"),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
