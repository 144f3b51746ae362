// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Programs that need the kernel to have dm-verity, which that of a test machine need not have.

use std::process::Command;

/// Makes the directory by which programs look for dm-verity, and runs the arguments.
const SCRIPT: &str =
    "mount -t tmpfs modules /sys/module && mkdir /sys/module/dm_verity && exec \"$@\"";

/// Returns the command in a mount namespace of its own, in which the kernel seems to have dm-verity.
pub fn with_dm_verity(command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped
        .args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}
