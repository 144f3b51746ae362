// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image volumes through `resnap serve`.

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::image::{Built, beside_hello, hello, shared_pair};
use tonic::{Code, Status};

use crate::node::Node;
use crate::proxy::pulled;
use crate::served::Served;
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    ErofsHandler: volume_on_erofs,
    NydusHandler: volume_on_nydus,
}

/// The CRI's image volumes came with containerd 2.1.
const VOLUMES: (u32, u32, u32) = (2, 1, 0);

/// From here on containerd's erofs wants its mount manager,
const MANAGED: (u32, u32, u32) = (2, 2, 0);

/// and from here on its image volumes use that. Versions in between mount none, and where the first
/// try of a pod has failed the second one gets an empty volume.
const MANAGED_VOLUMES: (u32, u32, u32) = (2, 4, 0);

const READ: [&str; 3] = ["/bin/sh", "-c", "cat /volume/etc/side"];

/// Returns the text that a container reads from its volume, or the error of its creation.
fn read(
    cri: &Cri,
    sandbox: &Sandbox,
    name: &str,
    volume: &Built,
) -> Result<Result<String, Status>> {
    let volumes = [("/volume", volume.reference.as_str())];
    let image = hello()?;
    let created = cri.create_with_volumes(sandbox, name, &image.reference, &READ, &volumes);
    let container = match created {
        Ok(container) => container,
        Err(error) => {
            let status = error.downcast_ref::<Status>().context("no status")?;
            return Ok(Err(status.clone()));
        }
    };
    cri.start_container(&container)?;
    Ok(Ok(cri.wait(&container)?.output.trim().to_owned()))
}

/// Returns the code of an error.
fn code(result: &Result<String, Status>) -> Option<Code> {
    result.as_ref().err().map(Status::code)
}

fn volume_on_erofs(node: &Node) -> Result<()> {
    pulled(node)?;
    let (left, _) = shared_pair()?;
    node.import(&left)?;
    node.unpack_by_containerd("overlayfs", &left.reference)?;
    let served = Served::start(node)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let result = read(&cri, &sandbox, "c", &left)?;
    let version = node.containerd.version();
    if version < MANAGED {
        ensure!(result.as_deref().ok() == Some("left"), "{result:?}");
    } else {
        let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
        let sandbox = direct.run_pod_sandbox("erofs", "direct")?;
        let without = read(&direct, &sandbox, "d", &left)?;
        ensure!(
            code(&result) == code(&without),
            "{result:?} is not {without:?}"
        );
        // Betas of 2.4 cannot, either.
        let read = [&result, &without].map(|result| result.as_deref().ok());
        let able = version >= MANAGED_VOLUMES && result.is_ok();
        let expected = able.then_some("left");
        ensure!(read == [expected; 2], "{result:?} and {without:?}");
    }
    if !(MANAGED..MANAGED_VOLUMES).contains(&version) {
        assert_labels(node, "erofs", &left, &[])?;
    }
    cri.remove_all()?;
    drop(cri);
    served.stop()
}

fn volume_on_nydus(node: &Node) -> Result<()> {
    pulled(node)?;
    let (left, right) = shared_pair()?;
    for image in [&left, &right] {
        node.import(image)?;
        node.unpack_by_containerd("overlayfs", &image.reference)?;
    }
    // Bind mounts need their place to be there.
    std::fs::create_dir_all(node.containerd.guest_root().join("volume"))?;
    let served = Served::start(node)?;
    let proxied = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let direct = Cri::connect(node.containerd.socket(), &node.containerd.scratch())?;
    let sandbox = proxied.run_pod_sandbox("nydus", "pod")?;
    let result = read(&proxied, &sandbox, "proxied", &left)?;
    let without = read(&direct, &sandbox, "direct", &right)?;
    if node.containerd.version() >= VOLUMES {
        ensure!(result.as_deref().ok() == Some("left"), "{result:?}");
        ensure!(without.as_deref().ok() == Some("right"), "{without:?}");
    } else {
        ensure!(
            code(&result) == code(&without),
            "{result:?} is not {without:?}"
        );
    }

    // The snapshots of a container are remote, and their mount would be an empty volume.
    let image = hello()?;
    let error = read(&proxied, &sandbox, "empty", &image)?;
    let status = error.err().context("an empty volume was mounted")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    let told = [image.reference.as_str(), "nydus", "empty"];
    ensure!(
        told.iter().all(|word| status.message().contains(word)),
        "{status:?}"
    );

    // With an image that shares its base with the other one, the volume would contain only the top layer.
    // None of its layers is on nydus yet.
    let in_new_namespace = beside_hello()?;
    ensure!(in_new_namespace.layers[0].chain_id == image.layers[0].chain_id);
    node.import(&in_new_namespace)?;
    node.unpack_by_containerd("overlayfs", &in_new_namespace.reference)?;
    let error = read(&proxied, &sandbox, "shared", &in_new_namespace)?;
    let status = error.err().context("half a volume was mounted")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    let told = [in_new_namespace.reference.as_str(), "nydus", "another"];
    ensure!(
        told.iter().all(|word| status.message().contains(word)),
        "{status:?}"
    );
    proxied.remove_all()?;
    drop((proxied, direct));
    served.stop()
}
