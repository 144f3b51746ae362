// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The configuration of files.

use clap::{CommandFactory as _, FromArgMatches as _};

use std::fs;

use resnap_core::ErofsMode;

use super::*;
use crate::args::Arguments;

const EXAMPLE: &str = include_str!("../../../../examples/config.toml");

/// Loads this file alone.
fn load(path: &str) -> Result<Config> {
    let words = ["resnap", "--config", path, "images"];
    let matches = Arguments::command().get_matches_from(words);
    let arguments = Arguments::from_arg_matches(&matches)?;
    Config::load(&arguments.common, None, &matches)
}

/// Returns the configuration of this file alone, without the sources.
fn without_sources(path: &str) -> String {
    let mut config = load(path).unwrap();
    config.file.value = None;
    format!("{config:#?}").replace("source: File", "source: Default")
}

#[test]
fn the_example_is_the_defaults() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/config.toml");
    assert_eq!(without_sources(example), without_sources("/dev/null"));
}

/// Loads a file with this text alone.
fn load_text(text: &str) -> Result<Config> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.toml");
    fs::write(&path, text)?;
    load(&path.display().to_string())
}

/// Returns the unpack configurations of a file.
fn unpack(text: &str) -> Result<Vec<(String, String, bool)>> {
    let config = load_text(text)?;
    let entries = config.unpack.value.into_iter();
    Ok(entries
        .map(|entry| {
            (
                entry.platform.to_string(),
                entry.snapshotter,
                entry.optional,
            )
        })
        .collect())
}

#[test]
fn unpack_configurations_are_read() {
    let host = resnap_unpacker::Configuration::defaults("")[0]
        .platform
        .to_string();
    let erofs = host.replacen('/', "(+erofs)/", 1);
    let entry = |platform: &str, snapshotter: &str, optional| {
        (platform.to_owned(), snapshotter.to_owned(), optional)
    };
    for (text, want) in [
        (
            "",
            vec![
                entry(&host, "overlayfs", false),
                entry(&erofs, "erofs", true),
            ],
        ),
        (
            "cri.default_snapshotter = 'native'",
            vec![entry(&host, "native", false), entry(&erofs, "erofs", true)],
        ),
        (
            "[[unpack]]\nplatform = 'linux(+b+a)/arm64'\nsnapshotter = 'mine'\noptional = true\n\
             [[unpack]]\nplatform = 'Linux/x86_64'\nsnapshotter = 'other'",
            vec![
                entry("linux(+a+b)/arm64", "mine", true),
                entry("linux/amd64", "other", false),
            ],
        ),
        ("unpack = []", Vec::new()),
    ] {
        assert_eq!(unpack(text).unwrap(), want, "{text}");
    }
    for (text, says) in [
        (
            "[[unpack]]\nsnapshotter = 'erofs'",
            "missing field `platform`",
        ),
        (
            "[[unpack]]\nplatform = 'linux/amd64'",
            "missing field `snapshotter`",
        ),
        (
            "[[unpack]]\nplatform = 'linux(erofs/amd64'\nsnapshotter = 'erofs'",
            "[[unpack]] platform \"linux(erofs/amd64\"",
        ),
    ] {
        let error = format!("{:#}", unpack(text).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn words_for_pulls_are_read() {
    for (word, when) in [
        ("when-safe", When::Safe),
        ("always", When::Always),
        ("never", When::Never),
    ] {
        let text = format!("cri.steer_pulls = '{word}'\ncri.image_status = '{word}'");
        let config = load_text(&text).unwrap();
        let values = (config.steer_pulls.value, config.image_status.value);
        assert_eq!(values, (when, when));
    }
    let error = format!("{:#}", load_text("cri.steer_pulls = 'safe'").unwrap_err());
    assert!(error.contains("when-safe"), "{error}");
}

#[test]
fn differs_are_read() {
    let text = "[snapshotters.mine]\ndiffer = 'resnap'\nsync_fs = true\nerofs_mode = 'tar-index'\n[snapshotters.other]";
    let config = load_text(text).unwrap();
    let differs = ["mine", "other"].map(|name| config.applier.differ(name));
    assert_eq!(differs, [Differ::Resnap, Differ::Auto]);
    let modes = ["mine", "other"].map(|name| config.applier.erofs_mode(name));
    assert_eq!(modes, [ErofsMode::TarIndex, ErofsMode::Full]);
    let syncs = ["mine", "other"].map(|name| config.profiles.get(name).sync_fs);
    assert_eq!(syncs, [true, false]);
}

#[test]
fn limits_of_layers_are_read() {
    let applier = load_text("").unwrap().applier;
    assert_eq!((applier.memory, applier.stall.as_secs()), (256 << 20, 600));
    let applier = load_text("memory = 16777216\nstall = 1").unwrap().applier;
    assert_eq!((applier.memory, applier.stall.as_secs()), (16 << 20, 1));
    for (text, says) in [
        (
            "memory = 16777215",
            "memory of 16777215 bytes is less than 16777216",
        ),
        ("stall = 0", "expected a nonzero u64"),
    ] {
        let error = format!("{:#}", load_text(text).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn the_example_has_every_key() {
    // Prose has a space after its hash.
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    let whole: String = EXAMPLE.lines().map(uncommented).collect();
    let file: File = toml::from_str(&whole).unwrap();
    assert!(file.snapshotters["mine"].volumes.is_some());

    for section in [
        "",
        "[cri]",
        "[api]",
        "[metrics]",
        "[snapshotters.mine]",
        "[[unpack]]",
        "[[prewarm]]",
    ] {
        let wrong = format!("{section}\nno_such_key = 1");
        let error = toml::from_str::<File>(&wrong).unwrap_err();
        let (_, keys) = error.message().split_once("expected ").unwrap();
        for key in keys.split('`').skip(1).step_by(2) {
            let is_there = whole.lines().any(|line| {
                line.strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with(" = "))
                    || line.starts_with(&format!("[{key}"))
                    || line.starts_with(&format!("[[{key}"))
                    || line.ends_with(&format!(".{key}]"))
            });
            assert!(is_there, "{section} {key}");
        }
    }
}
