// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Compiles the protocol, without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["resnap/v1/resnap.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
