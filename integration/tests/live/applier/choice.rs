// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The choice of the differ and the way a blob is read do not change the result.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, HELLO_SAYS, hello};
use resnap_integration::tap::{Method, Tap};

use crate::command::run_to_end;
use crate::hostile::{Blobs, GZIP};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: applier_leaves_the_rest_to_containerd,
    Containerd: applier_reads_unreachable_blobs_through_containerd,
}

/// Layers that a stream processor of the suite's containerds reads: each byte is one more.
pub(crate) const SHIFTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+shifted";
/// Layers that nobody reads.
const ENCRYPTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";

/// The part of containerd's `ApplyRequest` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    diff: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
}

/// containerd's `ReadContentRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct ReadContentRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

/// Returns the image [`hello`] with its second layer in another way.
pub(crate) fn changed(
    node: &Node,
    hello: &Built,
    media_type: &str,
    change: fn(Vec<u8>) -> Vec<u8>,
) -> Result<String> {
    let mut blobs = Blobs::default();
    let mut layers = Vec::new();
    for (index, layer) in hello.layers.iter().enumerate() {
        let blob = hello.blob(&layer.digest)?;
        layers.push(match index {
            1 => blobs.add(media_type, change(blob)),
            _ => blobs.add(GZIP, blob),
        });
    }
    let diff_ids = hello.layers.iter().map(|layer| layer.diff_id.clone());
    let diff_ids: Vec<_> = diff_ids.collect();
    let target = blobs.add_image(&layers, &diff_ids);
    let name = format!("docker.io/library/{}:1", unique("changed"));
    blobs.import(node, &name, target)?;
    Ok(name)
}

/// Returns the media types of what containerd was asked to apply.
fn applied(tap: &Tap) -> Result<Vec<String>> {
    let calls = tap.calls().into_iter();
    let calls = calls.filter(|call| Method::APPLY.is(&call.path));
    calls
        .map(|call| {
            let request: ApplyRequest = call.decode()?;
            Ok(request.diff.unwrap_or_default().media_type)
        })
        .collect()
}

/// `resnap unpack --json` by this differ through the tap.
fn unpack(node: &Node, tap: &Tap, differ: &str, name: &str, snapshotter: &str) -> Result<Command> {
    let mut command = node.command_with_differ(differ)?;
    command.env("CONTAINERD_ADDRESS", tap.socket()).args([
        "unpack",
        "--json",
        name,
        "--snapshotter",
        snapshotter,
    ]);
    Ok(command)
}

fn applier_leaves_the_rest_to_containerd(node: &Node) -> Result<()> {
    let hello = hello()?;
    let tap = node.containerd.tap()?;
    let look = "test ! -e /etc/only-in-layer-2 && cat /etc/message";
    let look = ["/bin/sh", "-c", look];
    let name = changed(node, &hello, SHIFTED, |blob| {
        blob.into_iter().map(|byte| byte.wrapping_add(1)).collect()
    })?;
    for snapshotter in node.targets() {
        tap.reset();
        run_to_end(&mut unpack(node, &tap, "auto", &name, snapshotter)?)?.ok()?;
        let left = applied(&tap)?;
        ensure!(left == [SHIFTED], "containerd applied {left:?}");
        let container = &node.containerd;
        let output = container.run(&node.namespace, snapshotter, &name, &look)?;
        ensure!(output.trim() == HELLO_SAYS, "on {snapshotter}: {output:?}");
        node.assert_nothing_left(snapshotter)?;
    }
    let fails = |differ: &str| -> Result<(String, Vec<String>)> {
        let on = node.in_new_namespace();
        let image = changed(&on, &hello, ENCRYPTED, |blob| blob)?;
        tap.reset();
        let output = run_to_end(&mut unpack(&on, &tap, differ, &image, "overlayfs")?)?;
        ensure!(output.code == Some(2), "want exit code 2: {output:#?}");
        let last = output
            .stdout
            .lines()
            .last()
            .context("nothing was printed")?;
        let last = last.replace(&image, "IMAGE");
        on.assert_no_active_snapshot("overlayfs")?;
        Ok((last, applied(&tap)?))
    };
    let (by_containerd, _) = fails("containerd")?;
    let (by_default, left) = fails("auto")?;
    ensure!(
        by_default == by_containerd,
        "{by_default}\nwant {by_containerd}"
    );
    ensure!(left == [ENCRYPTED], "containerd applied {left:?}");
    let (error, left) = fails("resnap")?;
    for word in ["FailedPrecondition", ENCRYPTED, "differ ="] {
        ensure!(error.contains(word), "does not say {word:?}: {error}");
    }
    ensure!(left.is_empty(), "containerd applied {left:?}");
    tap.finish()
}

fn applier_reads_unreachable_blobs_through_containerd(node: &Node) -> Result<()> {
    let image = hello()?;
    let tap = node.containerd.tap()?;
    let content = node
        .containerd
        .root()
        .join("io.containerd.content.v1.content");
    for snapshotter in node.targets() {
        for is_hidden in [false, true] {
            let on = node.in_new_namespace();
            on.import(&image)?;
            tap.reset();
            let plain = unpack(&on, &tap, "resnap", &image.reference, snapshotter)?;
            let mut command = match is_hidden {
                false => plain,
                true => {
                    let mut command = Command::new("unshare");
                    let script = "mount -t tmpfs none \"$1\" && shift && exec \"$@\"";
                    command
                        .args(["--mount", "sh", "-c", script, "sh"])
                        .arg(&content)
                        .arg(plain.get_program())
                        .args(plain.get_args());
                    for (key, value) in plain.get_envs() {
                        command.env(key, value.unwrap_or_default());
                    }
                    command
                }
            };
            run_to_end(&mut command)?.ok()?;
            let mut sent = Vec::new();
            for call in tap.calls() {
                if Method::CONTENT_READ.is(&call.path) {
                    sent.push(call.decode::<ReadContentRequest>()?.digest);
                }
            }
            for layer in &image.layers {
                let was_sent = sent.contains(&layer.digest);
                ensure!(was_sent == is_hidden, "{} on {snapshotter}", layer.digest);
            }
            let output = on.run(snapshotter, &image.reference)?;
            ensure!(output == HELLO_SAYS, "on {snapshotter} it says {output:?}");
            on.assert_nothing_left(snapshotter)?;
        }
    }
    tap.finish()
}
