// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The support of the kernel for dm-verity.

use std::path::Path;

use resnap_core::Integrity;

use crate::error::Error;

/// The directory by which containerd 2.3 decides whether the kernel has dm-verity (`internal/dmverity`).
const KERNEL_MODULE: &str = "/sys/module/dm_verity";

/// Checks that layers with a proof can be mounted on this machine.
pub(crate) fn require_kernel(integrity: Integrity) -> Result<(), Error> {
    if !integrity.is_on() || has_kernel_support() {
        return Ok(());
    }
    Err(Error::Unproven(format!(
        "the kernel has no dm-verity ({KERNEL_MODULE} is missing), and containerd would mount no layer with a tree: try `modprobe dm_verity`"
    )))
}

/// Returns whether the kernel has dm-verity.
pub(crate) fn has_kernel_support() -> bool {
    Path::new(KERNEL_MODULE).exists()
}
