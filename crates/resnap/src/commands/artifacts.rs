// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap artifacts`.

use std::sync::Arc;

use anyhow::{Result, bail};
use resnap_applier::Differ;
use resnap_archive::ArchiveSource;
use resnap_core::Integrity;
use resnap_platforms::Platform;
use resnap_publish::{
    Scratch, SignedArtifact, Unsigned, build_artifacts, push_artifacts, sign_artifacts,
};
use resnap_unpacker::{LayerState, Request};

use super::executor::Executor;
use super::signals::{listen, until_stopped};
use crate::config::{Config, trust};
use crate::connect::working_engine;
use crate::destination::{self, LATEST};
use crate::exit_status::ExitStatus;
use crate::layer_bar::shown;
use crate::local_images;
use crate::output::{Output, bytes, short};
use crate::pending_images::keep_during;
use crate::publish_args::{
    ArtifactsCommand, BuildArguments, PushArguments, SignArguments, VerifyArtifactsArguments,
};
use crate::publish_step::failure;
use crate::signer::Signer;
use crate::source_image::source_image;

pub(crate) async fn run(
    config: &mut Config,
    command: ArtifactsCommand,
    output: &mut Output,
) -> Result<ExitStatus> {
    match command {
        ArtifactsCommand::Build(arguments) => build(config, arguments, output).await,
        ArtifactsCommand::Sign(arguments) => sign(config, arguments, output).await,
        ArtifactsCommand::Push(arguments) => push(config, arguments, output).await,
        ArtifactsCommand::Verify(arguments) => verify(config, arguments, output).await,
    }
}

async fn build(
    config: &Config,
    arguments: BuildArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let image = source_image(config, &arguments.image).await?;
    let (name, is_own) = match &arguments.to {
        Some(to) => (to, false),
        None if arguments.image.starts_with("oci:") => (&arguments.image, true),
        None => bail!(
            "{} is not in a layout: name one for the artifacts, as --to oci:PATH",
            arguments.image
        ),
    };
    let to = destination::open(config, name).await?;
    let Some(layout) = &to.layout else {
        bail!(
            "{name} is no layout: artifacts are signed in one, and pushed then; name one, as --to oci:PATH"
        );
    };
    let source = ArchiveSource::new([layout]);
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    let set = arguments.set.into();
    let tag = to.tag.as_deref().unwrap_or(LATEST);
    let to = Unsigned {
        destination: &*to.destination,
        source: &source,
        tag: (!is_own).then_some(tag),
    };
    let built = shown(|bar| build_artifacts(&image, &platform, set, to, bar));
    let built = until_stopped(built).await?;
    let Some(built) = built else {
        return Ok(ExitStatus::Cancelled);
    };
    let built = built.map_err(failure)?;
    output.document(&built, |table| {
        table.line(format!("manifest: {}", built.subject.digest));
        table.header(["LAYER", "INDEX", "HASH TREE", "ROOT HASH"]);
        for layer in &built.layers {
            let (index, tree) = match &layer.indexed {
                Some(indexed) => (bytes(indexed.index.size), bytes(indexed.tree.size)),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let root_hash = layer.root_hash.clone();
            table.row([short(layer.layer.as_str()), index, tree, root_hash]);
        }
    })?;
    Ok(ExitStatus::Done)
}

async fn sign(
    config: &Config,
    arguments: SignArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let signer = Signer::new(&arguments)?;
    let image = source_image(config, &arguments.image).await?;
    let to = destination::open(config, &arguments.image).await?;
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    let signed = until_stopped(sign_artifacts(&image, &platform, &signer, &*to.destination));
    show_signed(signed.await?, output)
}

async fn push(
    config: &Config,
    arguments: PushArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let image = source_image(config, &arguments.image).await?;
    let there = source_image(config, &arguments.destination).await?;
    let to = destination::open(config, &arguments.destination).await?;
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    let (to, replace) = (&*to.destination, arguments.replace);
    let pushed = until_stopped(push_artifacts(&image, &platform, &there, to, replace));
    show_signed(pushed.await?, output)
}

fn show_signed(
    signed: Option<resnap_core::Result<Vec<SignedArtifact>>>,
    output: &mut Output,
) -> Result<ExitStatus> {
    let Some(signed) = signed else {
        return Ok(ExitStatus::Cancelled);
    };
    let signed = signed.map_err(failure)?;
    output.documents(&signed, |artifact, table| {
        table.line(format!("manifest: {}", artifact.subject));
        table.line(format!(
            "artifact: {} ({})",
            artifact.artifact, artifact.artifact_type
        ));
        table.header(["LAYER", "ROOT HASH"]);
        for (layer, root_hash) in &artifact.root_hashes {
            table.row([short(layer.as_str()), root_hash.clone()]);
        }
    })?;
    Ok(ExitStatus::Done)
}

/// Unpacks the image as a node would, in a store that is removed then.
async fn verify(
    config: &mut Config,
    arguments: VerifyArtifactsArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    const SNAPSHOTTER: &str = "erofs";
    if !arguments.signers.is_empty() || !arguments.authorities.is_empty() {
        let trust = trust(&arguments.authorities, &arguments.signers)?;
        config.applier.trust = trust.map(Arc::new);
    }
    if config.applier.trust.is_none() {
        bail!("no certificates are trusted: name some with --signer FILE or --authority FILE");
    }
    let scratch = Scratch::temporary().await.map_err(failure)?;
    config.use_store(&scratch.path().join("store"));
    config.profiles.entry(SNAPSHOTTER).integrity = Integrity::Signed;
    config
        .applier
        .differs
        .insert(SNAPSHOTTER.to_owned(), Differ::Resnap);
    output.set_engine(config);
    let mut images = [arguments.image];
    local_images::find(config, &mut images).await?;
    let [name] = images;
    if config.pending.is_none() {
        bail!(
            "{name:?} names no place of an image: want oci:PATH, oci-archive:FILE or docker://REFERENCE"
        );
    }
    let executor = Executor::Local(working_engine(config).await?);
    let mut request = Request::new(name);
    request.snapshotter = Some(SNAPSHOTTER.to_owned());
    request.platform = arguments.platform;
    let (signals, stop) = listen()?;
    let unpacked = executor.unpack(request.clone(), stop, |_| ());
    let unpacked = keep_during(config.pending.as_ref(), unpacked).await;
    signals.abort();
    unpacked?;
    let check = executor.check(&request).await?;
    output.document(&check, |table| {
        table.line(format!("manifest: {}", check.manifest));
        table.header(["LAYER", "ROOT HASH", "SIGNER"]);
        for layer in &check.layers {
            for state in layer.snapshots.values() {
                let LayerState::Committed {
                    proof: Some(proof), ..
                } = state
                else {
                    continue;
                };
                let signature = proof.signature.as_ref();
                table.row([
                    short(layer.digest.as_str()),
                    proof.root_hash.clone(),
                    signature
                        .map(|signature| signature.signer.clone())
                        .unwrap_or_default(),
                ]);
            }
        }
        table.line("a node that trusts these certificates accepts the image".to_owned());
    })?;
    Ok(ExitStatus::Done)
}
