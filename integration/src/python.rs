// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Packages from PyPI, for clients that are written in Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::debian::{lock, output, run, target_dir};

/// gRPC's C core under a thin cover: since 1.57 it names sockets in percent-encoding.
const GRPCIO: &str = "grpcio==1.76.0";

/// Runs a script with gRPC's Python package, which is downloaded once; gives what it prints.
///
/// # Errors
/// If the package cannot be had, or the script fails; then with what it wrote to stderr.
pub fn with_grpc(script: &str, arguments: &[&str]) -> Result<String> {
    let mut python = Command::new("python3");
    python
        .env("PYTHONPATH", grpc()?)
        .env("GRPC_VERBOSITY", "NONE");
    output(python.arg("-c").arg(script).args(arguments))
}

fn grpc() -> Result<PathBuf> {
    let dir = target_dir().join("python");
    let _lock = lock(&dir)?;
    let (packages, stamp) = (dir.join("packages"), dir.join(".packages"));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == GRPCIO) {
        return Ok(packages);
    }
    if packages.exists() {
        fs::remove_dir_all(&packages).with_context(|| format!("remove {packages:?}"))?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"]);
    run(pip.arg(&packages).arg(GRPCIO)).with_context(|| format!("install {GRPCIO}"))?;
    fs::write(&stamp, GRPCIO).with_context(|| format!("write {stamp:?}"))?;
    Ok(packages)
}
