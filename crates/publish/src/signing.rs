// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signed artifacts of an image: made of unsigned ones, and pushed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use resnap_core::{
    ArtifactSet, Bundle, Destination, Digest, Error, Kind, LayerArtifact, Payload, Platform,
    Referrer, Result,
};
use resnap_verity::RootHash;
use serde::Serialize;

use crate::artifact::{UNSIGNED, UnsignedArtifacts};
use crate::blob_file::put_bytes;
use crate::copy::copy_blob;
use crate::image::SourceImage;

/// Makes signatures.
#[async_trait]
pub trait RootHashSigner: Send + Sync {
    /// Returns the signature of a root hash, detached PKCS#7 in DER.
    ///
    /// # Errors
    /// The reason why there is none.
    async fn sign(&self, root_hash: &RootHash) -> Result<Vec<u8>>;
}

/// The signed artifact of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignedArtifact {
    /// The digest of the image's manifest.
    pub subject: Digest,
    /// The digest of the artifact's manifest.
    pub artifact: Digest,
    /// The type of the artifact.
    pub artifact_type: String,
    /// The root hashes, by the digests of the layers.
    pub root_hashes: BTreeMap<Digest, String>,
}

/// Signs the artifacts of an image for a platform where they are, in a layout. Artifacts that were signed before
/// are replaced.
///
/// # Errors
/// [`Kind::NotFound`] if there are none to sign; those of the signer and of the destination.
pub async fn sign_artifacts(
    image: &SourceImage,
    platform: &Platform,
    signer: &dyn RootHashSigner,
    to: &dyn Destination,
) -> Result<Vec<SignedArtifact>> {
    let manifest = image.choose(platform).await?.manifest;
    let sign = |kind| Error::new(kind, "sign the artifacts of", &*image.name);
    let mut unsigned = image.referrers(&manifest, &UNSIGNED).await?;
    if unsigned.is_empty() {
        let reason = "it has none: `resnap artifacts build` makes them";
        return Err(sign(Kind::NotFound).with_source(reason));
    }
    unsigned.sort_by(|left, right| left.artifact_type.cmp(&right.artifact_type));
    for pair in unsigned.windows(2) {
        if let [one, other] = pair
            && one.artifact_type == other.artifact_type
        {
            let (one, other) = (&one.descriptor.digest, &other.descriptor.digest);
            let reason = format!(
                "it has two, {one} and {other}, and which one was made of it is not known: build them again"
            );
            return Err(sign(Kind::FailedPrecondition).with_source(reason));
        }
    }
    let mut signed = Vec::new();
    for referrer in &unsigned {
        let artifacts = UnsignedArtifacts::read(image, referrer).await?;
        if artifacts.subject.digest != manifest.digest {
            let digest = referrer.descriptor.digest.as_str();
            let read = Error::new(Kind::DataLoss, "read artifact", digest);
            return Err(read.with_source("its config is of another image"));
        }
        let bundle = bundle(&artifacts, signer, to).await?;
        let (media_type, config) = Bundle::CONFIG;
        put_bytes(to, media_type, config.to_vec()).await?;
        let bytes = Bytes::from(bundle.encode(&artifacts.subject));
        let artifact_type = artifacts.set.artifact_type();
        let new = Referrer::new(artifact_type, Digest::sha256(&bytes), bytes.len() as u64);
        let old = image.referrers(&manifest, &[artifact_type]).await?;
        to.put_referrer(&new, bytes, &manifest.digest).await?;
        for old in old {
            if old.descriptor.digest != new.descriptor.digest {
                to.remove_referrer(&old, &manifest.digest).await?;
            }
        }
        signed.push(described(&bundle, &new, &manifest.digest));
    }
    Ok(signed)
}

fn described(bundle: &Bundle, referrer: &Referrer, subject: &Digest) -> SignedArtifact {
    let hashes = bundle.layers.iter();
    let hashes = hashes.map(|(layer, artifact)| (layer.clone(), artifact.root_hash.clone()));
    SignedArtifact {
        subject: subject.clone(),
        artifact: referrer.descriptor.digest.clone(),
        artifact_type: referrer.artifact_type.clone(),
        root_hashes: hashes.collect(),
    }
}

/// Makes and stores the signatures, and returns the bundle.
async fn bundle(
    artifacts: &UnsignedArtifacts,
    signer: &dyn RootHashSigner,
    to: &dyn Destination,
) -> Result<Bundle> {
    let set = artifacts.set;
    let mut layers = BTreeMap::new();
    for layer in &artifacts.layers {
        let root_hash: RootHash = layer.root_hash.parse().map_err(|error| {
            let read = Error::new(
                Kind::InvalidArgument,
                "read the root hash of",
                layer.layer.as_str(),
            );
            read.with_source(error)
        })?;
        let signature = signer.sign(&root_hash).await?;
        let media_type = set.media_type(Payload::Signature);
        let descriptor = put_bytes(to, media_type, signature.clone()).await?;
        let indexed = layer.indexed.clone();
        let inline = set.inline_signature().map(|_| signature);
        let artifact = LayerArtifact::new(root_hash.to_string(), indexed, descriptor, inline);
        layers.insert(layer.layer.clone(), artifact);
    }
    Ok(Bundle::new(set, layers))
}

/// Copies the signed artifacts of an image for a platform to where `there` is: the same image in a registry or in
/// another layout, which `to` writes to. With `replace`, other artifacts of the same types are removed there.
///
/// # Errors
/// [`Kind::NotFound`] if there are none, or the image is not there; [`Kind::AlreadyExists`] if there are others
/// of the same type, and they are not to be replaced; those of both places.
pub async fn push_artifacts(
    image: &SourceImage,
    platform: &Platform,
    there: &SourceImage,
    to: &dyn Destination,
    replace: bool,
) -> Result<Vec<SignedArtifact>> {
    let manifest = image.choose(platform).await?.manifest;
    let push = |kind| Error::new(kind, "push the artifacts of", &*image.name);
    if !to.has(&manifest).await? {
        let reason = format!(
            "{} does not have its manifest {}",
            there.name, manifest.digest
        );
        return Err(push(Kind::NotFound).with_source(reason));
    }
    let mut pushed = Vec::new();
    for referrer in image
        .referrers(&manifest, &ArtifactSet::artifact_types())
        .await?
    {
        let bytes = image.document(&referrer.descriptor).await?;
        let bundle = Bundle::parse(&bytes, &manifest.digest)
            .map_err(|fault| push(Kind::InvalidArgument).with_source(fault))?;
        let old = there
            .referrers(&manifest, &[&referrer.artifact_type])
            .await?;
        let old: Vec<_> = old
            .into_iter()
            .filter(|old| old.descriptor.digest != referrer.descriptor.digest)
            .collect();
        if let Some(old) = old.first().filter(|_| !replace) {
            let reason = format!(
                "{} has another one, {}, and nodes refuse several that differ: --replace removes it",
                there.name, old.descriptor.digest
            );
            return Err(push(Kind::AlreadyExists).with_source(reason));
        }
        let (media_type, config) = Bundle::CONFIG;
        put_bytes(to, media_type, config.to_vec()).await?;
        for artifact in bundle.layers.values() {
            let indexed = artifact.indexed.iter();
            let indexed = indexed.flat_map(|indexed| [&indexed.index, &indexed.tree]);
            for blob in indexed.chain([&artifact.signature]) {
                copy_blob(image, blob, to).await?;
            }
        }
        to.put_referrer(&referrer, bytes, &manifest.digest).await?;
        for old in &old {
            to.remove_referrer(old, &manifest.digest).await?;
        }
        pushed.push(described(&bundle, &referrer, &manifest.digest));
    }
    if pushed.is_empty() {
        let reason = "it has none that are signed: `resnap artifacts sign` signs them";
        return Err(push(Kind::NotFound).with_source(reason));
    }
    Ok(pushed)
}
