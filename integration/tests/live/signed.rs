// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers with signatures of their publisher, whose artifacts come from a registry or an archive.

use std::collections::BTreeSet;
use std::fs::{self, File};

use anyhow::{Context as _, Result, ensure};
use resnap_core::Digest;
use resnap_integration::cri::Cri;
use resnap_integration::image::{
    Artifact, ArtifactNames, Built, Form, HELLO_SAYS, LayerPayloads, forms, hello, pause,
};
use resnap_integration::registry::Registry;

use crate::command::run_to_end;
use crate::errors::assert_error;
use crate::integrity::{VERITY, proven_snapshot, try_unpack, unpack, while_used};
use crate::missing::{assert_outcome, discard, fetched, pushed};
use crate::node::{Node, unique};
use crate::publisher::Publisher;
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Erofs: signed_layers_are_made_of_artifacts_of_a_registry,
    Erofs: signed_layers_are_made_of_artifacts_on_disk,
    Erofs: signed_layers_are_refused_with_reasons,
    Erofs: signed_layers_replace_others_by_a_repair,
    Erofs: signed_layers_replace_those_in_use_by_a_repair,
    Erofs: signed_layers_may_be_images,
    Erofs: signed_layers_are_verified_on_demand,
    Erofs: signed_artifacts_are_used_only_if_signers_are_trusted,
    Erofs: signed_layers_are_made_also_beside_a_wrong_artifact,
    Erofs: signed_images_keep_their_artifact,
    ErofsHandler: signed_layers_are_verified_before_each_container,
}

/// An image in a registry, and the publisher of its artifacts.
struct Published {
    registry: Registry,
    image: Built,
    publisher: Publisher,
}

impl Published {
    fn new(node: &Node, image: &Built) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("registry"));
        let registry = Registry::start(node.containerd.dist(), &dir)?;
        let image = pushed(node, &registry, image, "signed:1")?;
        Ok(Self {
            publisher: Publisher::new(node, "publisher")?,
            registry,
            image,
        })
    }

    fn push(&self, artifact: &Artifact) -> Result<()> {
        artifact.push(&self.registry, "signed")
    }

    /// Puts the image on a node, by its reference in the registry.
    fn import(&self, node: &Node) -> Result<()> {
        node.import(&self.image)?;
        let name = &hello()?.reference;
        node.ctr(&["images", "tag", "--force", name, &self.image.reference])?;
        Ok(())
    }
}

/// Checks that all layers of the image have the proofs that these payloads are of.
fn assert_signed(node: &Node, image: &Built, payloads: &[LayerPayloads]) -> Result<()> {
    for (layer, payload) in image.layers.iter().zip(payloads) {
        let labels = node.labels("erofs", &layer.chain_id)?;
        let label = |name: &str| labels.get(&format!("resnap.io/verity-{name}")).cloned();
        ensure!(
            label("root-hash").as_ref() == Some(&payload.root_hash),
            "{labels:?}"
        );
        ensure!(label("origin").as_deref() == Some("artifact"), "{labels:?}");
        let signer = label("signer").unwrap_or_default();
        ensure!(signer.contains("CN=publisher"), "{labels:?}");
    }
    Ok(())
}

fn assert_nothing(node: &Node) -> Result<()> {
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.is_empty(), "{snapshots:?}");
    node.assert_nothing_left("erofs")
}

fn signed_layers_are_made_of_artifacts_of_a_registry(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let Published {
        registry,
        image,
        publisher,
    } = &published;
    let mut known = BTreeSet::new();
    for names in [ArtifactNames::Notary, ArtifactNames::Containerd] {
        let payloads = publisher.payloads(image, names)?;
        published.push(&Artifact::new(image, names, &payloads)?)?;
        // The set that is proposed for containerd goes first.
        let node = &node.in_new_namespace();
        published.import(node)?;
        let before = registry.requests()?.len();
        let report = unpack(node, &publisher.config(""), image, &[])?;
        assert_outcome(&report, "applied")?;
        assert_signed(node, image, &payloads)?;
        let says = node.run("erofs", &image.reference)?;
        ensure!(says == HELLO_SAYS, "{says:?}");
        // Trees are not needed: the whole device is hashed for the comparison.
        let blobs = fetched(registry, before)?;
        let signatures = payloads.iter().map(|layer| &layer.signature);
        let signatures = signatures.filter(|_| names == ArtifactNames::Containerd);
        let indexes = payloads.iter().map(|layer| &layer.index);
        let needed = signatures.chain(indexes);
        let mut needed: BTreeSet<_> = needed
            .map(|bytes| Digest::sha256(bytes).to_string())
            .collect();
        // Another namespace of the node has them.
        needed.retain(|blob| !known.contains(blob));
        ensure!(blobs == needed, "{blobs:?} instead of {needed:?}");
        known.extend(blobs.iter().cloned());
        node.assert_nothing_left("erofs")?;
        // The image keeps the artifact.
        node.collect_garbage()?;
        let content = node.ctr(&["content", "ls", "-q"])?;
        ensure!(blobs.iter().all(|blob| content.contains(blob)), "{content}");
        let report = unpack(node, &publisher.config(""), image, &[])?;
        assert_outcome(&report, "existed")?;
    }
    Ok(())
}

fn signed_layers_are_made_of_artifacts_on_disk(node: &Node) -> Result<()> {
    let image = hello()?;
    let publisher = Publisher::new(node, "publisher")?;
    let payloads = publisher.payloads(&image, ArtifactNames::Containerd)?;
    let artifact = Artifact::new(&image, ArtifactNames::Containerd, &payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    node.import(&image)?;
    let archives = format!("sources.archives = [{archive:?}]\n");
    let report = unpack(node, &publisher.config(&archives), &image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, &image, &payloads)?;
    node.assert_nothing_left("erofs")
}

fn signed_layers_are_refused_with_reasons(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let stranger = Publisher::new(node, "stranger")?;
    let names = ArtifactNames::Containerd;
    let good = publisher.payloads(image, names)?;
    let refused = |artifacts: &[Vec<LayerPayloads>], says: &[&str]| {
        let published = Published::new(node, &hello()?)?;
        let image = &published.image;
        for payloads in artifacts {
            published.push(&Artifact::new(image, names, payloads)?)?;
        }
        let node = node.in_new_namespace();
        published.import(&node)?;
        let output = try_unpack(&node, &publisher.config(""), image, &[])?;
        assert_error(output, "FailedPrecondition", says, "")?;
        assert_nothing(&node)
    };
    let change = |change: &dyn Fn(&mut Vec<LayerPayloads>) -> Result<()>| {
        let mut payloads = good.clone();
        change(&mut payloads)?;
        Ok::<_, anyhow::Error>(payloads)
    };
    let digest = &image.layers[1].digest;
    refused(
        &[],
        &[
            "no signature",
            "no source has an artifact",
            "registry: it has none",
        ],
    )?;
    let unsigned = change(&|payloads| {
        payloads[1].signature = stranger.sign(&payloads[1].root_hash)?;
        Ok(())
    })?;
    refused(&[unsigned], &[digest, &good[1].root_hash, "stranger"])?;
    let swapped = change(&|payloads| {
        payloads[1].signature = payloads[0].signature.clone();
        Ok(())
    })?;
    refused(
        &[swapped],
        &[digest, &good[1].root_hash, "is not of the root hash"],
    )?;
    // Signed, and of another device.
    let other_layer = change(&|payloads| {
        payloads[1].root_hash = payloads[0].root_hash.clone();
        payloads[1].signature = payloads[0].signature.clone();
        Ok(())
    })?;
    let says = [
        digest,
        &*good[1].root_hash,
        &*good[0].root_hash,
        "is signed",
    ];
    refused_late(node, &published, publisher, &other_layer, &says)?;
    let other_index = change(&|payloads| {
        let last = payloads[1].index.last_mut().context("no index")?;
        *last ^= 1;
        Ok(())
    })?;
    refused_late(
        node,
        &published,
        publisher,
        &other_index,
        &[digest, "is signed"],
    )?;
    // One that was accepted once, and is not any more.
    let expired = Publisher::expired(node, "expired")?;
    let payloads = expired.payloads(&hello()?, names)?;
    let node_of_expired = node.in_new_namespace();
    node_of_expired.import(&hello()?)?;
    let config = archived(&node_of_expired, &hello()?, &expired, &payloads)?;
    let output = try_unpack(&node_of_expired, &config, &hello()?, &[])?;
    assert_error(output, "FailedPrecondition", &["expired"], "")?;
    assert_nothing(&node_of_expired)?;
    let incomplete = change(&|payloads| {
        payloads.pop();
        Ok(())
    })?;
    let last = &image.layers.last().context("no layers")?.digest;
    refused(&[incomplete], &[last, "it has nothing for the layer"])?;
    let garbage = change(&|payloads| {
        payloads[0].signature = b"no signature".to_vec();
        Ok(())
    })?;
    refused(&[garbage], &[&image.layers[0].digest, "signature"])?;
    // Two publications that are both signed.
    let mut second = good.clone();
    let twice = publisher.payloads(&hello()?, ArtifactNames::Notary)?;
    second[0].clone_from(&twice[0]);
    if second[0].root_hash != good[0].root_hash {
        refused(
            &[good.clone(), second],
            &["both signed", "different root hashes"],
        )?;
    }
    Ok(())
}

/// Checks a refusal that comes when a layer is written. The layers below it stay.
fn refused_late(
    node: &Node,
    published: &Published,
    publisher: &Publisher,
    payloads: &[LayerPayloads],
    says: &[&str],
) -> Result<()> {
    let artifact = Artifact::new(&published.image, ArtifactNames::Containerd, payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    let node = node.in_new_namespace();
    published.import(&node)?;
    let archives = format!("sources.archives = [{archive:?}]\n");
    let config = publisher.config(&archives);
    let error = try_unpack(&node, &config, &published.image, &[])?;
    let text = format!("{error:?}");
    ensure!(error.code == Some(2), "{error:?}");
    ensure!(
        says.iter().all(|says| text.contains(says)),
        "{says:?}: {error:?}"
    );
    let snapshots = node.snapshots("erofs")?;
    ensure!(snapshots.len() == 1, "{snapshots:?}");
    node.assert_no_active_snapshot("erofs")?;
    // Its signatures were those of the publisher. It is not the artifact of the image for that.
    let names = ArtifactNames::Containerd;
    let good = publisher.payloads(&published.image, names)?;
    let right = node.containerd.scratch().join(unique("artifact"));
    Artifact::new(&published.image, names, &good)?.write_archive(&right)?;
    let config = publisher.config(&format!("sources.archives = [{right:?}]\n"));
    unpack(&node, &config, &published.image, &[])?;
    assert_signed(&node, &published.image, &good)
}

/// Writes the artifact of an image to an archive, and returns the configuration to use it.
fn archived(
    node: &Node,
    image: &Built,
    publisher: &Publisher,
    payloads: &[LayerPayloads],
) -> Result<String> {
    let archive = node.containerd.scratch().join(unique("artifact"));
    Artifact::new(image, ArtifactNames::Containerd, payloads)?.write_archive(&archive)?;
    Ok(publisher.config(&format!("sources.archives = [{archive:?}]\n")))
}

/// Adds a second to the time of the first file in a tar.
fn change_time(tar: &mut [u8]) -> Result<()> {
    let header = tar.get_mut(..512).context("an empty tar")?;
    // Octal digits; the last one of the time, and those of the checksum.
    let digit = &mut header[146];
    let (old, new) = (*digit, b'0' + (*digit - b'0' + 1) % 8);
    *digit = new;
    let sum = u32::from_str_radix(std::str::from_utf8(&header[148..154])?, 8)?;
    let sum = sum + u32::from(new) - u32::from(old);
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    Ok(())
}

fn signed_layers_replace_those_in_use_by_a_repair(node: &Node) -> Result<()> {
    let (image, publisher) = (hello()?, Publisher::new(node, "publisher")?);
    let names = ArtifactNames::Containerd;
    let payloads = publisher.payloads(&image, names)?;
    let config = archived(node, &image, &publisher, &payloads)?;
    let others = publisher.payloads_of(&image, names, change_time)?;
    let other_config = archived(node, &image, &publisher, &others)?;
    type Unpack = fn(&Node, &Built) -> Result<()>;
    let unpacks: [Unpack; 4] = [
        |node, image| node.unpack("erofs", &image.reference).map(drop),
        // By mkfs.erofs, and without labels.
        |node, image| node.unpack_by_containerd("erofs", &image.reference),
        |node, image| unpack(node, VERITY, image, &[]).map(drop),
        |node, image| {
            node.unpack("overlayfs", &image.reference)?;
            let sibling = "sources.sibling = \"always\"\nsources.order = [\"sibling\"]\n";
            assert_outcome(&unpack(node, sibling, image, &[])?, "copied")
        },
    ];
    for unpack_before in unpacks {
        let node = &node.in_new_namespace();
        node.import(&image)?;
        unpack_before(node, &image)?;
        while_used(node, &image, || {
            // An image with other files does not take the place of one that is used.
            let output = try_unpack(node, &other_config, &image, &["--repair"])?;
            let says = ["is in use", "has other files: the root differs"];
            assert_error(output, "FailedPrecondition", &says, "remove container")?;
            let report = unpack(node, &config, &image, &["--repair"])?;
            assert_outcome(&report, "existed")?;
            assert_signed(node, &image, &payloads)
        })?;
        let mut verify = node.configured_command(&config)?;
        verify.args(["verify", "--json", &image.reference, "-s", "erofs"]);
        run_to_end(&mut verify)?.ok()?;
        let report = unpack(node, &config, &image, &["--repair"])?;
        assert_outcome(&report, "existed")?;
        node.assert_nothing_left("erofs")?;
        // What is not used is made again.
        let report = unpack(node, &other_config, &image, &[])?;
        assert_outcome(&report, "existed")?;
    }
    let node = node.in_new_namespace();
    node.import(&image)?;
    node.unpack("erofs", &image.reference)?;
    let report = unpack(&node, &other_config, &image, &["--repair"])?;
    assert_outcome(&report, "applied")?;
    assert_signed(&node, &image, &others)
}

/// The lower layer is an EROFS image, the upper one a tar.
fn signed_layers_may_be_images(node: &Node) -> Result<()> {
    let (image, publisher) = (forms(&[Form::Mixed])?, Publisher::new(node, "publisher")?);
    let payloads = publisher.payloads(&image, ArtifactNames::Containerd)?;
    let config = archived(node, &image, &publisher, &payloads)?;
    let assert_proven = |node: &Node| {
        for (layer, origin) in image.layers.iter().zip(["generated", "artifact"]) {
            let labels = node.labels("erofs", &layer.chain_id)?;
            ensure!(labels["resnap.io/verity-origin"] == origin, "{labels:?}");
            ensure!(labels["resnap.io/verity-signer"].contains("CN=publisher"));
        }
        node.assert_nothing_left("erofs")
    };
    node.import(&image)?;
    let report = unpack(node, &config, &image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_proven(node)?;
    let existing = node.in_new_namespace();
    existing.import(&image)?;
    existing.unpack("erofs", &image.reference)?;
    let mut other = payloads.clone();
    other[0].root_hash = payloads[1].root_hash.clone();
    other[0].signature = payloads[1].signature.clone();
    let other_config = archived(node, &image, &publisher, &other)?;
    // A signature of something else leaves nothing behind that would stand in the way of the right one.
    let output = try_unpack(&existing, &other_config, &image, &["--repair"])?;
    assert_error(output, "FailedPrecondition", &["is signed"], "attach")?;
    let report = unpack(&existing, &config, &image, &["--repair"])?;
    assert_outcome(&report, "existed")?;
    assert_proven(&existing)?;
    // Another root hash, and the index of a layer that is no tar.
    let mut indexed = payloads.clone();
    indexed[0].index = payloads[1].index.clone();
    let mut plain = payloads.clone();
    plain[1].index.clear();
    for (payloads, says) in [
        (other, "is signed"),
        (indexed, "which is no tar"),
        (plain, "no index of its tar"),
    ] {
        let node = node.in_new_namespace();
        node.import(&image)?;
        let config = archived(&node, &image, &publisher, &payloads)?;
        let output = try_unpack(&node, &config, &image, &[])?;
        assert_error(output, "FailedPrecondition", &[says], "")?;
        assert_nothing(&node)?;
    }
    Ok(())
}

fn signed_layers_are_verified_on_demand(node: &Node) -> Result<()> {
    let (image, publisher) = (hello()?, Publisher::new(node, "publisher")?);
    node.import(&image)?;
    let payloads = publisher.payloads(&image, ArtifactNames::Containerd)?;
    let config = archived(node, &image, &publisher, &payloads)?;
    unpack(node, &config, &image, &[])?;
    let verify = || {
        let mut verify = node.configured_command(&config)?;
        verify.args(["verify", &image.reference, "-s", "erofs"]);
        run_to_end(&mut verify)
    };
    verify()?.ok()?;
    let signature = proven_snapshot(node, &image.layers[0].chain_id)?.join("layer.erofs.sig");
    let right = fs::read(&signature)?;
    let stranger = Publisher::new(node, "stranger")?;
    for (wrong, says) in [
        (stranger.sign(&payloads[0].root_hash)?, "stranger"),
        (payloads[1].signature.clone(), "is not of the root hash"),
        (b"no signature".to_vec(), "signature"),
    ] {
        fs::write(&signature, wrong)?;
        let output = verify()?;
        ensure!(output.code == Some(1), "{output:?}");
        ensure!(output.stdout.contains(says), "{says}: {output:?}");
    }
    fs::write(&signature, right)?;
    verify()?.ok()?;
    Ok(())
}

fn signed_layers_replace_others_by_a_repair(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    published.import(node)?;
    node.unpack("erofs", &image.reference)?;
    let config = publisher.config("");
    let output = try_unpack(node, &config, image, &[])?;
    assert_error(
        output,
        "FailedPrecondition",
        &["without the proof"],
        "--repair",
    )?;
    // Nothing is removed before there are signatures.
    let before: BTreeSet<_> = node.snapshots("erofs")?.into_keys().collect();
    let output = try_unpack(node, &config, image, &["--repair"])?;
    assert_error(
        output,
        "FailedPrecondition",
        &["no source has an artifact"],
        "",
    )?;
    let after: BTreeSet<_> = node.snapshots("erofs")?.into_keys().collect();
    ensure!(before == after, "{before:?} became {after:?}");
    let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
    let artifact = Artifact::new(image, ArtifactNames::Containerd, &payloads)?;
    let archive = node.containerd.scratch().join(unique("artifact"));
    artifact.write_archive(&archive)?;
    let config = publisher.config(&format!("sources.archives = [{archive:?}]\n"));
    let report = unpack(node, &config, image, &["--repair"])?;
    assert_outcome(&report, "existed")?;
    assert_signed(node, image, &payloads)
}

fn signed_artifacts_are_used_only_if_signers_are_trusted(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
    published.push(&Artifact::new(image, ArtifactNames::Containerd, &payloads)?)?;
    let stranger = Publisher::new(node, "stranger")?;
    let verity = "snapshotters.erofs.integrity = \"verity\"\n\
                  sources.order = [\"archive\", \"registry\"]\n";
    let signers = |publisher: &Publisher| {
        format!(
            "{verity}integrity.signers = [{:?}]\n",
            publisher.dir.join("cert.pem")
        )
    };
    // Whoever may push may attach the signatures of the publisher and other indexes.
    let mut wrong = payloads.clone();
    *wrong[1].index.last_mut().context("no index")? ^= 1;
    let archive = node.containerd.scratch().join(unique("artifact"));
    Artifact::new(image, ArtifactNames::Containerd, &wrong)?.write_archive(&archive)?;
    let archives = format!("{}sources.archives = [{archive:?}]\n", signers(publisher));
    for (config, origin) in [
        (verity.to_owned(), "generated"),
        (archives, "generated"),
        (signers(&stranger), "generated"),
        (signers(publisher), "artifact"),
    ] {
        let node = node.in_new_namespace();
        published.import(&node)?;
        let report = unpack(&node, &config, image, &[])?;
        assert_outcome(&report, "applied")?;
        // The first layer may come before the wrong one.
        for layer in &image.layers[1..] {
            let labels = node.labels("erofs", &layer.chain_id)?;
            ensure!(
                labels["resnap.io/verity-origin"] == origin,
                "{config}: {labels:?}"
            );
        }
        let says = node.run("erofs", &image.reference)?;
        ensure!(says == HELLO_SAYS, "{says:?}");
    }
    Ok(())
}

/// Whoever may push may attach an artifact with the publisher's signatures and a wrong index.
fn signed_layers_are_made_also_beside_a_wrong_artifact(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let names = ArtifactNames::Containerd;
    let right = publisher.payloads(image, names)?;
    let mut wrong = right.clone();
    *wrong[1].index.last_mut().context("no index")? ^= 1;
    let right_artifact = Artifact::new(image, names, &right)?;
    // The registry lists them in this order.
    published.push(&Artifact::new(image, names, &wrong)?)?;
    published.push(&right_artifact)?;
    published.import(node)?;
    let report = unpack(node, &publisher.config(""), image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, image, &right)?;
    let content = node.ctr(&["content", "ls"])?;
    let kept = format!(
        "containerd.io/gc.ref.content.dmverity={}",
        right_artifact.digest()
    );
    ensure!(content.contains(&kept), "{content}");
    // Layers that exist get their proofs in place.
    let node = node.in_new_namespace();
    published.import(&node)?;
    node.unpack("erofs", &image.reference)?;
    let report = unpack(&node, &publisher.config(""), image, &["--repair"])?;
    assert_outcome(&report, "existed")?;
    assert_signed(&node, image, &right)?;
    node.assert_nothing_left("erofs")
}

fn signed_images_keep_their_artifact(node: &Node) -> Result<()> {
    let published = Published::new(node, &hello()?)?;
    let (image, publisher) = (&published.image, &published.publisher);
    let names = ArtifactNames::Notary;
    let payloads = publisher.payloads(image, names)?;
    published.push(&Artifact::new(image, names, &payloads)?)?;
    published.import(node)?;
    let config = publisher.config("");
    unpack(node, &config, image, &[])?;
    // Another one comes, which would go first.
    let others = publisher.payloads(image, ArtifactNames::Containerd)?;
    published.push(&Artifact::new(image, ArtifactNames::Containerd, &others)?)?;
    let mut evict = node.configured_command(&config)?;
    evict.args(["evict", &image.reference, "-s", "erofs"]);
    run_to_end(&mut evict)?.ok()?;
    ensure!(node.snapshots("erofs")?.is_empty(), "nothing was evicted");
    let report = unpack(node, &config, image, &[])?;
    assert_outcome(&report, "applied")?;
    assert_signed(node, image, &payloads)
}

fn signed_layers_are_verified_before_each_container(node: &Node) -> Result<()> {
    let node = &Node {
        containerd: node.containerd.clone(),
        namespace: "k8s.io".to_owned(),
    };
    let (image, publisher) = (hello()?, Publisher::new(node, "publisher")?);
    let mut archives = Vec::new();
    for image in [&image, &pause()?] {
        node.import(image)?;
        let payloads = publisher.payloads(image, ArtifactNames::Containerd)?;
        let artifact = Artifact::new(image, ArtifactNames::Containerd, &payloads)?;
        let archive = node.containerd.scratch().join(unique("artifact"));
        artifact.write_archive(&archive)?;
        archives.push(archive);
    }
    let config = publisher.config(&format!("sources.archives = {archives:?}\n"));
    let served = Served::with_dm_verity(node, &config)?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let exit = cri.run(&sandbox, "first", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS.trim(), "{exit:?}");
    // Sidecars are replaced, as by somebody who has replaced the images as well.
    let snapshots = node.snapshotter_root("erofs").join("snapshots");
    let mut replaced = 0;
    for snapshot in fs::read_dir(snapshots)? {
        let path = snapshot?.path().join("layer.erofs.dmverity");
        if File::open(&path).is_ok() {
            let text = fs::read_to_string(&path)?;
            let digit = text.find(": \"").context("no root hash")? + 3;
            let other = if &text[digit..=digit] == "0" {
                "1"
            } else {
                "0"
            };
            fs::write(
                &path,
                format!("{}{other}{}", &text[..digit], &text[digit + 1..]),
            )?;
            replaced += 1;
        }
    }
    ensure!(replaced > 0, "there are no sidecars");
    let refused = cri.create_container(&sandbox, "second", &image.reference, &[]);
    let text = format!("{:#}", refused.err().context("a container of other files")?);
    ensure!(text.contains("and its label"), "{text}");
    cri.remove_all()?;
    drop(cri);
    served.stop()?;
    discard(node, &image)
}
