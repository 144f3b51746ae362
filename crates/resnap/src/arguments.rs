// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The arguments of other programs, and the file that kubelet reads beside its own.

use serde_json::Value;

/// Returns the value of an argument, as `NAME VALUE` or `NAME=VALUE`. The last one counts.
pub(crate) fn last_value<'a, S: AsRef<str>>(words: &'a [S], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    for (index, word) in words.iter().enumerate() {
        let (name, value) = match word.as_ref().split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_ref(), words.get(index + 1).map(S::as_ref)),
        };
        if names.contains(&name) {
            found = value;
        }
    }
    found
}

/// Returns a value at the top level of a KubeletConfiguration, which is YAML or JSON.
pub(crate) fn kubelet_value(text: &str, key: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<Value>(text) {
        return Some(json.get(key)?.as_str()?.to_owned());
    }
    // A scalar of one line, as kubeadm and everybody writes it.
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    let found = found.split(" #").next().unwrap_or_default().trim();
    let found = found.trim_matches(['"', '\'']);
    (!found.is_empty()).then(|| found.to_owned())
}
