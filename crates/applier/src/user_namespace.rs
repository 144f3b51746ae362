// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The user namespace of this process.

use std::path::Path;

/// Returns whether this process is in a user namespace that does not have all users
/// (`user_namespaces(7)`).
pub(crate) fn is_user_namespace() -> bool {
    let map = std::fs::read_to_string(Path::new("/proc/self/uid_map")).unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && numbers != ["0", "0", "4294967295"]
}
