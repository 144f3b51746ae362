// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The output of `resnap config explain`.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn every_top_level_key_is_explained() {
    let example = include_str!("../../../examples/config.toml");
    let (top_level, _) = example.split_once("\n[").unwrap();
    let keys = top_level.lines().filter_map(|line| {
        let (key, _) = line.trim_start_matches('#').split_once(" = ")?;
        (!key.contains(' ')).then_some(key)
    });
    let output = Command::new(env!("CARGO_BIN_EXE_resnap"))
        .args(["--config", "/dev/null", "--address", "/no/such/socket"])
        .args(["--json", "config", "explain"])
        .output()
        .unwrap();
    let explained = String::from_utf8(output.stdout).unwrap();
    let keys: Vec<&str> = keys.collect();
    assert!(
        keys.contains(&"memory") && keys.contains(&"max_layer_bytes"),
        "{keys:?}"
    );
    for key in keys {
        assert!(
            explained.contains(&format!("\"{key}\"")),
            "{key}: {explained}"
        );
    }
}
