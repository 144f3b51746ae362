// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The recipe of `examples/publish`: an image that is built, converted, signed and pushed, and runs on a node that
//! wants signatures.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::{output, provision};
use resnap_integration::dm_verity::with_dm_verity;
use resnap_integration::registry::Registry;
use serde_json::Value;

use crate::command::run_to_end;
use crate::node::{Node, host_platform, unique};
use crate::publisher::Publisher;
use crate::suite::live_tests;

live_tests! {
    Erofs: published_images_run_where_signatures_are_wanted,
}

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/publish/publish.sh"
);

const SAYS: &str = "hello from a published image";

/// Writes a root file system whose `/hello` prints [`SAYS`].
fn write_rootfs(rootfs: &Path) -> Result<()> {
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy(
        provision()?.tools().join("busybox"),
        rootfs.join("bin/busybox"),
    )?;
    let hello = rootfs.join("hello");
    fs::write(&hello, format!("#!/bin/busybox sh\necho {SAYS}\n"))?;
    Ok(fs::set_permissions(
        hello,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Returns a search path with the programs of the harness, and resnap.
fn search_path(resnap: &Path) -> Result<OsString> {
    let own = [provision()?.tools().to_owned(), resnap.to_owned()];
    let all = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(
        own.into_iter().chain(env::split_paths(&all)),
    )?)
}

/// Checks that each layer of a manifest has a proof that the publisher signed.
fn assert_signed(node: &Node, config: &str, arguments: &[&str]) -> Result<()> {
    let checked = run_to_end(
        node.configured_command(config)?
            .args(["check", "--json", "--snapshotter", "erofs"])
            .args(arguments),
    )?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let checks: Value = serde_json::from_str(&checked.stdout)?;
    let layers = checks[0]["layers"].as_array().context("no layers")?;
    ensure!(!layers.is_empty(), "{checks}");
    for layer in layers {
        let signer = &layer["snapshots"]["erofs"]["proof"]["signature"]["signer"];
        let is_signed = signer
            .as_str()
            .is_some_and(|signer| signer.contains("CN=publisher"));
        ensure!(is_signed, "{layer}");
    }
    Ok(())
}

fn published_images_run_where_signatures_are_wanted(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("publish"));
    fs::create_dir(&dir)?;
    let registry = Registry::start(node.containerd.dist(), &dir.join("registry"))?;
    let reference = registry.reference("team/app:1");
    let publisher = Publisher::new(node, "publisher")?;
    let rootfs = dir.join("rootfs");
    write_rootfs(&rootfs)?;

    let resnap = node.resnap_command()?;
    let program = PathBuf::from(resnap.get_program());
    let mut publish = Command::new(SCRIPT);
    publish
        .arg(&rootfs)
        .arg(&reference)
        .args(["key.pem", "cert.pem"])
        .env(
            "PATH",
            search_path(program.parent().context("no directory")?)?,
        )
        .env("RESNAP_CONFIG", dir.join("none.toml"))
        .current_dir(&publisher.dir);
    fs::write(dir.join("none.toml"), "")?;
    let published = output(&mut publish)?;
    let accepted = "a node that trusts these certificates accepts the image";
    ensure!(published.matches(accepted).count() == 2, "{published}");

    // containerd reads what was pushed, all of it.
    node.ctr(&[
        "content",
        "fetch",
        "--plain-http",
        "--all-platforms",
        &reference,
    ])?;
    node.ctr(&["images", "pull", "--plain-http", &reference])?;
    let config = publisher.config("");
    let plain = host_platform();
    let native = plain.replacen("linux/", "linux(+erofs)/", 1);
    for platform in [&plain, &native] {
        let arguments = &[&*reference, "--platform", platform];
        let mut unpack = node.configured_command(&config)?;
        unpack
            .args(["unpack", "--snapshotter", "erofs"])
            .args(arguments);
        let unpacked = run_to_end(&mut with_dm_verity(&unpack))?;
        ensure!(unpacked.code == Some(0), "{unpacked:?}");
        assert_signed(node, &config, arguments)?;
    }
    // Each of both manifests, which have one name.
    let mut verify = node.configured_command(&config)?;
    verify.args(["verify", "--all", "--json", "--snapshotter", "erofs"]);
    let verified = run_to_end(&mut verify)?;
    ensure!(verified.code == Some(0), "{verified:?}");
    let verified: Value = serde_json::from_str(&verified.stdout)?;
    let layers = verified.as_array().into_iter().flatten();
    let layers: BTreeSet<_> = layers.map(|image| image["layers"].to_string()).collect();
    ensure!(layers.len() == 2, "{verified}");
    let said = node.run("erofs", &reference)?;
    ensure!(said == SAYS, "{said}");
    node.assert_nothing_left("erofs")
}
