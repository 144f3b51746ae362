// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The support of the kernel for dm-verity.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use crate::error::{Error, IoContext as _};

/// The directory by which containerd 2.3 decides whether the kernel has dm-verity (`internal/dmverity`).
const KERNEL_MODULE: &str = "/sys/module/dm_verity";

/// Checks that layers with a proof can be mounted on this machine.
pub(crate) fn require_kernel() -> Result<(), Error> {
    if has_kernel_support() {
        return Ok(());
    }
    Err(Error::Unproven(format!(
        "the kernel has no dm-verity ({KERNEL_MODULE} is missing), and containerd would mount no layer with a tree: try `modprobe dm_verity`"
    )))
}

/// Logs a warning if the kernel refuses trees without a signature.
pub(crate) fn warn_of_required_signatures() {
    let path = Path::new(KERNEL_MODULE).join("parameters/require_signatures");
    if fs::read(path).is_ok_and(|value| value.starts_with(b"Y")) {
        tracing::warn!(
            "the kernel mounts only layers whose signature it was given (dm_verity.require_signatures), and containerd gives it none: no layer with a tree can be mounted"
        );
    }
}

/// Returns whether the kernel has dm-verity.
pub(crate) fn has_kernel_support() -> bool {
    Path::new(KERNEL_MODULE).exists()
}

/// Checks that the image of a snapshot is not mounted by a tree now. containerd 2.3 names the device after the
/// snapshot: with another tree, it would refuse every mount until the last one with the old tree is gone
/// (`plugins/mount/erofs`).
pub(super) fn require_no_device(snapshot: &OwnedFd) -> Result<(), Error> {
    let path = fs::read_link(format!("/proc/self/fd/{}", snapshot.as_raw_fd()));
    let path = path.context("find the snapshot")?;
    let id = path.file_name().unwrap_or_default().to_string_lossy();
    let device = format!("containerd-erofs-{id}");
    match has_device(Path::new("/sys/block"), &device).context("look for its device")? {
        true => Err(Error::Unproven(format!(
            "containers use it by its dm-verity tree now (the device {device}), and it would get another one"
        ))),
        false => Ok(()),
    }
}

/// Returns whether there is a device of this name.
fn has_device(block: &Path, device: &str) -> io::Result<bool> {
    for entry in fs::read_dir(block)? {
        // It may go meanwhile, and most devices have no such name.
        let name = fs::read_to_string(entry?.path().join("dm/name"));
        if name.is_ok_and(|name| name.trim_end() == device) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_their_names() {
        let block = tempfile::tempdir().unwrap();
        for (device, name) in [("dm-0", "containerd-erofs-12\n"), ("dm-1", "other\n")] {
            let dir = block.path().join(device).join("dm");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("name"), name).unwrap();
        }
        fs::create_dir(block.path().join("vda")).unwrap();
        let has = |name| has_device(block.path(), name).unwrap();
        assert!(has("containerd-erofs-12"));
        assert!(!has("containerd-erofs-1"));
    }
}
