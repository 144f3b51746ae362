// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Artifacts of images, in a registry and on disk.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::TryStreamExt as _;
use resnap_archive::ArchiveSource;
use resnap_core::{
    ArtifactSet, BlobSource, Bundle, Descriptor, Digest, MissingBlob, PullCredentials, Referrer,
    media_type,
};
use resnap_integration::image::{Artifact, ArtifactNames, Built, LayerPayloads, hello};
use resnap_integration::registry::{CREDENTIALS, Registry};
use resnap_registry::{RegistrySource, Settings};

use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Containerd: referrers_of_an_image_are_found_in_a_registry,
    Containerd: referrers_of_an_image_are_found_on_disk,
}

fn artifact(image: &Built, names: ArtifactNames) -> Result<Artifact> {
    let layers = image.layers.iter().map(|layer| LayerPayloads {
        layer: layer.digest.clone(),
        index: format!("index of {}", layer.digest).into_bytes(),
        tree: format!("tree of {}", layer.digest).into_bytes(),
        root_hash: "ab".repeat(32),
        signature: format!("signature of {names:?} for {}", layer.digest).into_bytes(),
    });
    Artifact::new(image, names, &layers.collect::<Vec<_>>())
}

fn subject(image: &Built, reference: Option<String>) -> Result<MissingBlob> {
    Ok(MissingBlob {
        descriptor: Descriptor {
            media_type: media_type::OCI_MANIFEST.to_owned(),
            digest: image.manifest.parse()?,
            size: 1,
            annotations: Default::default(),
            platform: None,
        },
        reference,
        repositories: Default::default(),
        urls: Vec::new(),
        pods: Default::default(),
    })
}

async fn read(
    source: &dyn BlobSource,
    subject: &MissingBlob,
    descriptor: &Descriptor,
) -> Result<Vec<u8>> {
    let mut blob = subject.clone();
    blob.descriptor = descriptor.clone();
    let pieces: Vec<_> = source.open(&blob, 0).await?.try_collect().await?;
    Ok(pieces.concat())
}

/// Checks that a source has the artifacts, and all of each.
async fn check(
    source: &dyn BlobSource,
    subject: &MissingBlob,
    image: &Built,
    artifacts: &[(ArtifactSet, Artifact)],
) -> Result<()> {
    let types = ArtifactSet::artifact_types();
    let found = source.referrers(subject, &types).await?;
    ensure!(found.len() == artifacts.len(), "{found:?}");
    for (set, artifact) in artifacts {
        let digest: Digest = artifact.digest().parse()?;
        let mut of = found.iter();
        let of = of.find(|found| found.descriptor.digest == digest);
        let Referrer {
            descriptor,
            artifact_type,
            ..
        } = of.context("not found")?;
        ensure!(artifact_type == set.artifact_type());
        let bytes = read(source, subject, descriptor).await?;
        let bundle = Bundle::parse(&bytes, &subject.descriptor.digest)?;
        ensure!((bundle.set, bundle.layers.len()) == (*set, image.layers.len()));
        for (layer, artifact) in &bundle.layers {
            let indexed = artifact.indexed.as_ref().context("no index")?;
            ensure!(
                read(source, subject, &indexed.index).await?
                    == format!("index of {layer}").as_bytes()
            );
            ensure!(
                read(source, subject, &indexed.tree).await?
                    == format!("tree of {layer}").as_bytes()
            );
            let signature = read(source, subject, &artifact.signature).await?;
            let is_inline = *set == ArtifactSet::Notary;
            ensure!(artifact.inline_signature == is_inline.then_some(signature));
        }
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

fn both(image: &Built) -> Result<Vec<(ArtifactSet, Artifact)>> {
    Ok(vec![
        (
            ArtifactSet::Containerd,
            artifact(image, ArtifactNames::Containerd)?,
        ),
        (ArtifactSet::Notary, artifact(image, ArtifactNames::Notary)?),
    ])
}

fn referrers_of_an_image_are_found_in_a_registry(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start_private(node.containerd.dist(), &dir)?;
    let image = hello()?;
    let subject = subject(&image, Some(registry.reference("hello:1")))?;
    let config = dir.join("docker.json");
    let login = STANDARD.encode(format!("{}:{}", CREDENTIALS.0, CREDENTIALS.1));
    let text = format!(
        r#"{{"auths":{{"{}":{{"auth":"{login}"}}}}}}"#,
        registry.host()
    );
    std::fs::write(&config, text)?;
    let settings = Settings {
        docker_configs: vec![config],
        ..Settings::default()
    };
    let source = RegistrySource::new(settings, PullCredentials::new());
    let artifacts = both(&image)?;
    runtime()?.block_on(async {
        check(&source, &subject, &image, &[]).await?;
        for (_, artifact) in &artifacts {
            artifact.push(&registry, "hello")?;
            // The same again adds nothing.
            artifact.push(&registry, "hello")?;
        }
        check(&source, &subject, &image, &artifacts).await
    })
}

fn referrers_of_an_image_are_found_on_disk(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("archives"));
    std::fs::create_dir_all(&dir)?;
    let image = hello()?;
    let artifacts = both(&image)?;
    let subject = subject(&image, None)?;
    let source = ArchiveSource::new([&dir]);
    runtime()?.block_on(async {
        check(&source, &subject, &image, &[]).await?;
        artifacts[0].1.write_archive(&dir.join("one.tar"))?;
        artifacts[1].1.write_layout(&dir.join("other"))?;
        check(&source, &subject, &image, &artifacts).await
    })
}
