// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The certificates by which signatures are verified.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use resnap_verity::Trust;

/// Reads the certificates of authorities and of signers, if there are any.
pub(crate) fn trust(authorities: &[PathBuf], signers: &[PathBuf]) -> Result<Option<Trust>> {
    if authorities.is_empty() && signers.is_empty() {
        return Ok(None);
    }
    let mut trust = Trust::new();
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {path:?}"));
    for path in authorities {
        let added = trust.add_authorities(&read(path)?);
        added.with_context(|| format!("trust the authorities in {path:?}"))?;
    }
    for path in signers {
        let added = trust.add_signers(&read(path)?);
        added.with_context(|| format!("trust the signers in {path:?}"))?;
    }
    Ok(Some(trust))
}
