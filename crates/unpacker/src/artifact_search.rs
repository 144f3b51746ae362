// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The search for the artifact of an image.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::erofs_layer::is_image;
use resnap_core::{
    ArtifactSet, BlobSource, Bundle, Descriptor, Digest, Error, Kind, Labels, LargeRead,
    LayerArtifact, MissingBlob, Referrer, SignedRoot, TarIndex, error_chain, labels, read_verified,
};
use tokio::time::timeout;

use crate::chain::Chain;
use crate::fetch::{Fetching, PARALLEL_FETCHES, adopt};
use crate::missing::missing_blob;
use crate::plan::PlannedLayer;
use crate::signatures::Found;
use crate::sources::Source;

/// The time limit for a list of artifacts from one source.
const TIME: Duration = Duration::from_secs(60);

/// The limit on the artifacts of one set that are read.
const MAX_BUNDLES: usize = 8;

/// The limit on the bytes of a signature.
const MAX_SIGNATURE: u64 = 64 * 1024;

/// The reason why the layers of an image get no signed root hashes.
pub(crate) struct Refusal {
    /// The layer, if it is the reason.
    pub(crate) layer: Option<Digest>,
    pub(crate) root_hash: Option<String>,
    pub(crate) why: String,
}

impl Refusal {
    pub(crate) fn of_image(why: impl Into<String>) -> Self {
        Self {
            layer: None,
            root_hash: None,
            why: why.into(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::of_image(error_chain(&error))
    }
}

/// An artifact whose signatures are accepted.
struct Accepted {
    manifest: Digest,
    /// The root hashes of the layers, the base first.
    roots: Vec<Arc<SignedRoot>>,
    /// The signatures that are blobs of their own.
    signatures: Vec<Digest>,
}

/// The search for the artifact of an image.
pub(crate) struct Search<'a> {
    pub(crate) chain: &'a Chain,
    /// The first layer whose index is needed.
    pub(crate) first: usize,
}

impl Search<'_> {
    /// Returns the artifact that is accepted, with its indexes fetched. Dropping the future leaves what was
    /// fetched to the lease.
    pub(crate) async fn find(&self) -> Result<Found, Refusal> {
        let backend = &self.chain.backend;
        let manifest = &self.chain.job.spec.plan.manifest;
        let info = backend.ports.content.info(&backend.scope, &manifest.digest);
        let labels = info.await?.labels;
        let pinned = labels.get(labels::GC_ARTIFACT).cloned();
        if pinned.is_none() && backend.absent.contains(&manifest.digest) {
            return Err(Refusal::of_image("no source had an artifact a moment ago"));
        }
        let referrers = match self.pinned(pinned.as_deref()).await {
            Some(referrer) => vec![referrer],
            None => self.listed(&labels, pinned.as_deref()).await?,
        };
        let signatures = &self.chain.signatures;
        let mut first_refusal = None;
        for set in ArtifactSet::ALL {
            loop {
                let left = referrers.iter().filter(|referrer| {
                    referrer.artifact_type == set.artifact_type()
                        && signatures.may_try(&referrer.descriptor.digest)
                });
                let accepted = self.accepted(&left.collect::<Vec<_>>(), &labels).await;
                let refusal = match accepted {
                    Ok(None) => break,
                    Ok(Some(accepted)) => match self.keep(&accepted, &labels).await {
                        Ok(()) => {
                            return Ok(Found {
                                artifact: accepted.manifest,
                                roots: accepted.roots,
                            });
                        }
                        Err(refusal) => {
                            signatures.exclude(&accepted.manifest);
                            refusal
                        }
                    },
                    Err(refusal) => {
                        first_refusal.get_or_insert(refusal);
                        break;
                    }
                };
                first_refusal.get_or_insert(refusal);
            }
        }
        Err(first_refusal.unwrap_or_else(|| Refusal::of_image("no source has an artifact of it")))
    }

    /// Returns the artifact that the image was unpacked with before, if it is here.
    async fn pinned(&self, digest: Option<&str>) -> Option<Referrer> {
        let backend = &self.chain.backend;
        let digest: Digest = digest?.parse().ok()?;
        let info = backend.ports.content.info(&backend.scope, &digest);
        let size = info.await.ok()?.size;
        let mut referrer = Referrer::new("", digest, size);
        let bytes = self
            .read(&referrer.descriptor, Bundle::MAX_BYTES)
            .await
            .ok()?;
        let bundle = Bundle::parse(&bytes, self.subject()).ok()?;
        bundle
            .set
            .artifact_type()
            .clone_into(&mut referrer.artifact_type);
        Some(referrer)
    }

    fn layers(&self) -> &[PlannedLayer] {
        self.chain.layers()
    }

    fn subject(&self) -> &Digest {
        &self.chain.job.spec.plan.manifest.digest
    }

    /// Returns the artifacts of the first source that has any; only the one with the digest `pinned`, if the
    /// image was unpacked with it.
    async fn listed(
        &self,
        labels: &Labels,
        pinned: Option<&str>,
    ) -> Result<Vec<Referrer>, Refusal> {
        let manifest = &self.chain.job.spec.plan.manifest;
        let (subject, mut reasons) = (self.blob(manifest, labels), String::new());
        let (types, mut are_all_asked) = (ArtifactSet::artifact_types(), true);
        for source in self.sources() {
            let listed = source.referrers(&subject, &types);
            let listed = timeout(TIME, listed).await.unwrap_or_else(|_| {
                let error = Error::new(Kind::DeadlineExceeded, "list", manifest.digest.as_str());
                Err(error.with_source(format!("no list came within {TIME:?}")))
            });
            match listed {
                Ok(mut referrers) if !referrers.is_empty() => {
                    if let Some(pinned) = pinned {
                        referrers.retain(|referrer| referrer.descriptor.digest.as_str() == pinned);
                    }
                    if referrers.is_empty() {
                        return Err(Refusal::of_image(format!(
                            "the artifact {} that it was unpacked with before is gone, and no other one is used (the label {} of the manifest)",
                            pinned.unwrap_or_default(),
                            labels::GC_ARTIFACT
                        )));
                    }
                    return Ok(referrers);
                }
                Ok(_) => reasons += &format!("; {}: it has none", source.name()),
                Err(error) => {
                    are_all_asked = false;
                    reasons += &format!("; {}: {}", source.name(), error_chain(&error));
                }
            }
        }
        if are_all_asked {
            self.chain.backend.absent.insert(&manifest.digest);
        }
        Err(Refusal::of_image(format!(
            "no source has an artifact of it{reasons}"
        )))
    }

    fn sources(&self) -> impl Iterator<Item = &Arc<dyn BlobSource>> {
        let sources = self.chain.backend.sources.iter();
        sources.filter_map(|source| match source {
            Source::Blobs(source) => Some(source),
            Source::Sibling { .. } => None,
        })
    }

    fn blob(&self, descriptor: &Descriptor, labels: &Labels) -> MissingBlob {
        let (job, reference) = (&self.chain.job, &self.chain.job.spec.plan.image.reference);
        missing_blob(descriptor, reference.as_deref(), labels, job.pods())
    }

    /// Returns the artifact of one set that is accepted; `None` if there is none. Several that are accepted
    /// must have the same root hashes.
    async fn accepted(
        &self,
        referrers: &[&Referrer],
        labels: &Labels,
    ) -> Result<Option<Accepted>, Refusal> {
        if referrers.len() > MAX_BUNDLES {
            let count = referrers.len();
            let text = format!("it has {count} artifacts of one type, more than {MAX_BUNDLES}");
            return Err(Refusal::of_image(text));
        }
        let (mut accepted, mut refusal) = (None::<Accepted>, None);
        for referrer in referrers {
            let checked = self.check(&referrer.descriptor, labels).await;
            let checked = match checked {
                Ok(checked) => checked,
                Err(error) => {
                    refusal = refusal.or(Some(error));
                    continue;
                }
            };
            let Some(other) = &accepted else {
                accepted = Some(checked);
                continue;
            };
            let mut pairs = other.roots.iter().zip(&checked.roots);
            if let Some(at) = pairs.position(|(one, two)| one.root_hash != two.root_hash) {
                return Err(Refusal {
                    layer: self
                        .layers()
                        .get(at)
                        .map(|layer| layer.descriptor.digest.clone()),
                    root_hash: None,
                    why: format!(
                        "the artifacts {} and {} are both signed, and have different root hashes for it",
                        other.manifest, checked.manifest
                    ),
                });
            }
        }
        match (accepted, refusal) {
            (None, Some(refusal)) => Err(refusal),
            (accepted, _) => Ok(accepted),
        }
    }

    /// Fetches an artifact's manifest and signatures, and verifies those of all layers.
    async fn check(&self, artifact: &Descriptor, labels: &Labels) -> Result<Accepted, Refusal> {
        let manifest = &artifact.digest;
        let refused = |why: String| Refusal::of_image(format!("the artifact {manifest}: {why}"));
        if artifact.size > Bundle::MAX_BYTES as u64 {
            return Err(refused(format!("its manifest has {} bytes", artifact.size)));
        }
        self.fetch(artifact, labels).await?;
        let bytes = self.read(artifact, Bundle::MAX_BYTES).await?;
        let bundle = Bundle::parse(&bytes, self.subject());
        let bundle = bundle.map_err(|fault| refused(fault.to_string()))?;
        let mut accepted = Accepted {
            manifest: manifest.clone(),
            roots: Vec::with_capacity(self.layers().len()),
            signatures: Vec::new(),
        };
        for layer in self.layers() {
            let digest = &layer.descriptor.digest;
            let refused = |root_hash: Option<&str>, why: String| Refusal {
                layer: Some(digest.clone()),
                root_hash: root_hash.map(str::to_owned),
                why: format!("the artifact {manifest}: {why}"),
            };
            let Some(artifact) = bundle.layers.get(digest) else {
                return Err(refused(None, "it has nothing for the layer".to_owned()));
            };
            let root_hash = Some(&*artifact.root_hash);
            let why = match (is_image(&layer.descriptor), &artifact.indexed) {
                (true, Some(_)) => Some("it has an index of the layer, which is no tar"),
                (false, None) => Some("it has a signature of the layer, and no index of its tar"),
                _ => None,
            };
            if let Some(why) = why {
                return Err(refused(root_hash, why.to_owned()));
            }
            let root = self.verify(artifact, bundle.set, labels).await;
            let root = root.map_err(|error| refused(root_hash, error_chain(&error)))?;
            accepted.roots.push(Arc::new(root));
            if artifact.inline_signature.is_none() {
                let signature = artifact.signature.digest.clone();
                accepted.signatures.push(signature);
            }
        }
        Ok(accepted)
    }

    /// Verifies the signature of a layer's root hash.
    async fn verify(
        &self,
        artifact: &LayerArtifact,
        set: ArtifactSet,
        labels: &Labels,
    ) -> Result<SignedRoot, Error> {
        let (root_hash, blob) = (&artifact.root_hash, &artifact.signature);
        if blob.size > MAX_SIGNATURE {
            let error = Error::new(Kind::ResourceExhausted, "read", blob.digest.as_str());
            return Err(error.with_source(format!("a signature of {} bytes", blob.size)));
        }
        let signature = match &artifact.inline_signature {
            Some(signature) => signature.clone(),
            None => {
                self.fetch(blob, labels).await?;
                self.read(blob, usize::try_from(MAX_SIGNATURE).unwrap_or(0))
                    .await?
            }
        };
        let applier = &self.chain.backend.ports.applier;
        let verified = applier.verify_signature(root_hash, &signature)?;
        let index = artifact.indexed.as_ref().map(|indexed| TarIndex {
            blob: indexed.index.clone(),
            multiple: set.padding(),
        });
        Ok(SignedRoot {
            root_hash: root_hash.clone(),
            signature: Bytes::from(signature),
            verified,
            index,
        })
    }

    /// Fetches the indexes of an artifact that are needed, and keeps them with it.
    async fn keep(&self, accepted: &Accepted, labels: &Labels) -> Result<(), Refusal> {
        let roots = accepted.roots.iter().enumerate().skip(self.first);
        let indexes = roots.filter_map(|(number, root)| Some((number, &root.index.as_ref()?.blob)));
        let fetches = indexes.clone().map(|(_, index)| self.fetch(index, labels));
        let fetches: Vec<_> = fetches.collect();
        let fetched = stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES);
        fetched.try_collect::<()>().await?;
        let (labeler, scope) = (&self.chain.backend.ports.labeler, &self.chain.backend.scope);
        let indexes = indexes.map(|(number, index)| (number, &index.digest));
        let signatures = (accepted.roots.len()..).zip(&accepted.signatures);
        for (number, blob) in indexes.chain(signatures) {
            let key = format!("{}{number}", labels::GC_LAYER_PREFIX);
            let set = labeler.set_label(scope, &accepted.manifest, &key, blob.as_str());
            set.await?;
        }
        Ok(())
    }

    /// Fetches a blob under the job's lease, unless it is there.
    async fn fetch(&self, descriptor: &Descriptor, labels: &Labels) -> Result<(), Error> {
        let (backend, lease) = (&*self.chain.backend, &*self.chain.lease);
        let blob = self.blob(descriptor, labels);
        if adopt(backend, lease, &blob).await? {
            return Ok(());
        }
        let mut reasons = String::new();
        for source in self.sources() {
            let mut fetching = Fetching {
                backend,
                lease,
                blob: &blob,
                progress: &|_| {},
                feeding: None,
            };
            match fetching.fetch(&**source).await {
                Ok(()) => return Ok(()),
                Err(error) => reasons += &format!("; {}: {}", source.name(), error_chain(&error)),
            }
        }
        let error = Error::new(Kind::NotFound, "fetch", descriptor.digest.as_str());
        Err(error.with_source(format!("no source has it{reasons}")))
    }

    async fn read(&self, descriptor: &Descriptor, limit: usize) -> Result<Vec<u8>, Error> {
        let (backend, mut large) = (&self.chain.backend, LargeRead::default());
        let content = &*backend.ports.content;
        read_verified(content, &backend.scope, descriptor, limit, &mut large).await
    }
}
