// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The log lines of the program.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::{Command, Output};

use serde_json::Value;

fn run(log_format: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_resnap"))
        .args(["--config", "/dev/null", "--address", "/no/such/socket"])
        .args(arguments)
        .env("RESNAP_LOG_FORMAT", log_format)
        .env_remove("RESNAP_LOG")
        .output()
        .unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}

#[test]
fn json_logs_are_objects_one_a_line() {
    let output = run("json", &["config", "explain"]);
    assert!(output.status.success(), "{output:?}");
    let [warning] = &json_lines(&output)[..] else {
        panic!("one line: {output:?}");
    };
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["target"], "resnap::commands::explain");
    let fields = &warning["fields"];
    assert!(fields["message"].is_string(), "{warning}");
    assert!(
        fields["error"]
            .as_str()
            .unwrap()
            .contains("/no/such/socket"),
        "{warning}"
    );
}

#[test]
fn the_error_that_ends_a_command_is_a_log_line_too() {
    let output = run("json", &["images"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let [error] = &json_lines(&output)[..] else {
        panic!("one line: {output:?}");
    };
    assert_eq!(error["level"], "ERROR");
    let fields = &error["fields"];
    let message = fields["message"].as_str().unwrap();
    assert!(message.contains("/no/such/socket"), "{error}");
    assert!(fields["next_step"].is_string(), "{error}");
}

#[test]
fn an_unknown_format_is_an_error() {
    let output = run("xml", &["images"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        text,
        "resnap: RESNAP_LOG_FORMAT is \"xml\"; the formats are text and json\n"
    );
}
