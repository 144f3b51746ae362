// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A blob that is nobody's.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::digest;

use crate::node::{Node, unique};

/// Stores a blob by what `ctr` gives; its digest.
pub(crate) fn ingest(node: &Node, ctr: impl Fn() -> Command, blob: &[u8]) -> Result<String> {
    let digest = digest(blob);
    let root = ["content", "label", &digest, "containerd.io/gc.root=test"];
    // Nobody refers to it before: garbage collection can take it.
    for _ in 0..9 {
        let mut writer = ctr()
            .args(["content", "ingest", &unique("blob")])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut stdin = writer.stdin.take().context("ctr has no stdin")?;
        stdin.write_all(blob)?;
        drop(stdin);
        ensure!(writer.wait()?.success(), "ctr content ingest");
        if node.ctr(&root).is_ok() {
            return Ok(digest);
        }
    }
    node.ctr(&root)?;
    Ok(digest)
}
