// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The stand-in for Kata: a `mount.fuse` that does in a script what the guest
//! would do.
//!
//! For a container on nydus in proxy mode containerd runs
//! `mount.fuse overlay TARGET -o OPTION -o OPTION ... -t nydus-overlayfs`, and
//! one option is the volume that the guest would pull as base64 JSON. The stand-in
//! keeps both and mounts an overlay over a prepared tree, so that the pod runs
//! under runc with content that the host's snapshotters never had.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::debian::write_program;

/// A call of the stand-in `mount.fuse`.
#[derive(Debug, Clone, PartialEq)]
pub struct MountHelperCall {
    /// All arguments, without the program's name.
    pub argv: Vec<String>,
    /// The volume, decoded; `None` when the options had none.
    pub volume: Option<serde_json::Value>,
}

/// Writes the script to `bin`; it keeps calls in `calls` and shows `guest`.
pub(super) fn write(bin: &Path, calls: &Path, guest: &Path) -> Result<()> {
    let script = format!(
        r#"#!/bin/sh
set -eu
call="{calls}/$(date +%s%N).$$"
mkdir "$call.part"
printf '%s\n' "$@" >"$call.part/argv"
target=$2 upper= work=
for arg; do
  case $arg in
    upperdir=*) upper=$arg ;;
    workdir=*) work=$arg ;;
    io.katacontainers.volume=*)
      printf '%s' "${{arg#*=}}" | base64 -d >"$call.part/volume" ;;
  esac
done
mv "$call.part" "$call"
exec mount -t overlay overlay -o "lowerdir={guest},$upper,$work" "$target"
"#,
        calls = calls.display(),
        guest = guest.display(),
    );
    write_program(&bin.join("mount.fuse"), &script)
}

/// A guest's tree in which a pause container and a shell can run.
pub(super) fn make_guest(guest: &Path, busybox: &Path) -> Result<()> {
    let bin = guest.join("bin");
    for dir in [
        &bin,
        &guest.join("proc"),
        &guest.join("sys"),
        &guest.join("dev"),
    ] {
        fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
    }
    let to = bin.join("busybox");
    fs::copy(busybox, &to).with_context(|| format!("copy {busybox:?} to {to:?}"))?;
    for name in ["sh", "cat", "echo", "ls", "sleep"] {
        let link = bin.join(name);
        std::os::unix::fs::symlink("busybox", &link).with_context(|| format!("link {link:?}"))?;
    }
    let pause = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait; done\n";
    write_program(&guest.join("pause"), pause)
}

/// Returns the calls so far, oldest first. A shim repeats a call of which it missed the
/// end; those count once.
pub(super) fn read_calls(calls: &Path) -> Result<Vec<MountHelperCall>> {
    let mut dirs: Vec<_> = fs::read_dir(calls)
        .with_context(|| format!("list {calls:?}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    dirs.retain(|dir| dir.extension().is_none_or(|extension| extension != "part"));
    dirs.sort();
    let mut found: Vec<MountHelperCall> = Vec::new();
    for dir in dirs {
        let call = read_call(&dir)?;
        if found.iter().all(|other| other.argv != call.argv) {
            found.push(call);
        }
    }
    Ok(found)
}

fn read_call(dir: &Path) -> Result<MountHelperCall> {
    let argv = fs::read_to_string(dir.join("argv")).with_context(|| format!("read {dir:?}"))?;
    let argv = argv.lines().map(str::to_owned).collect();
    let volume = dir.join("volume");
    let volume = match volume.exists() {
        true => Some(
            serde_json::from_slice(&fs::read(&volume)?)
                .with_context(|| format!("{volume:?} is no JSON"))?,
        ),
        false => None,
    };
    Ok(MountHelperCall { argv, volume })
}
