// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The support of the kernel for dm-verity.

use std::path::Path;

use crate::error::Error;

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
    if std::fs::read(path).is_ok_and(|value| value.starts_with(b"Y")) {
        tracing::warn!(
            "the kernel mounts only layers whose signature it was given (dm_verity.require_signatures), and containerd gives it none: no layer with a tree can be mounted"
        );
    }
}

/// Returns whether the kernel has dm-verity.
pub(crate) fn has_kernel_support() -> bool {
    Path::new(KERNEL_MODULE).exists()
}
