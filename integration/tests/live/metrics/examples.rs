// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The dashboard and the alerts of `examples/monitoring`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::output;
use serde_json::{Value, json};

use super::exposition::Samples;
use crate::node::{Node, unique};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/monitoring");

/// The macros of Grafana in queries, and values that they can have.
const MACROS: [(&str, &str); 2] = [("$__rate_interval", "5m"), ("$instance", ".*")];

/// The query functions and labels that look like metrics.
const METRICS: [&str; 2] = ["resnap_", "process_"];

/// Checks that all queries are of metrics in `samples`.
pub(super) fn are_of(samples: &Samples) -> Result<()> {
    let rules = fs::read_to_string(Path::new(DIR).join("rules.yaml"))?;
    let mut used = names(&rules);
    ensure!(used.len() >= 8, "{used:?}");
    for query in queries()? {
        used.extend(names(&query));
    }
    let exist = |name: &String| {
        samples
            .keys()
            .any(|sample| sample.split('{').next() == Some(name))
    };
    used.retain(|name| !exist(name));
    ensure!(used.is_empty(), "no metrics are named {used:?}");
    Ok(())
}

/// Returns the queries of the dashboard.
fn queries() -> Result<Vec<String>> {
    let dashboard = fs::read(Path::new(DIR).join("dashboard.json"))?;
    let dashboard: Value = serde_json::from_slice(&dashboard)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let targets = panel["targets"].as_array();
        for target in targets.with_context(|| format!("no queries in {panel}"))? {
            let query = target["expr"].as_str().context("a query without text")?;
            let fill = |query: String, (name, value): &(&str, &str)| query.replace(name, value);
            queries.push(MACROS.iter().fold(query.to_owned(), fill));
        }
    }
    Ok(queries)
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| METRICS.iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

pub(super) fn metrics_have_dashboards_and_alerts_that_are_valid(node: &Node) -> Result<()> {
    let promtool = node.containerd.dist().tools().join("promtool");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&promtool);
        output(command.args(arguments).current_dir(DIR))
    };
    run(&["check", "rules", "rules.yaml"])?;
    let tested = run(&["test", "rules", "rules.test.yaml"])?;
    ensure!(tested.contains("SUCCESS"), "{tested}");

    // A query is valid if a rule of it is.
    let record = |(number, expr): (usize, String)| json!({ "record": format!("panel:{number}"), "expr": expr });
    let rules: Vec<Value> = queries()?.into_iter().enumerate().map(record).collect();
    ensure!(rules.len() >= 15, "{rules:?}");
    let path = node.containerd.scratch().join(unique("rules"));
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(&path, file.to_string())?;
    let checked = run(&["check", "rules", &path.to_string_lossy()]);
    fs::remove_file(&path)?;
    checked.map(drop)
}
