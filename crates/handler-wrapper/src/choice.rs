// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The choice of the manifest for a platform (containerd `core/images/image.go`, `Manifest`).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    ContentReader, Descriptor, Digest, Error, Kind, Platform, Result, Scope, media_type,
};
use resnap_platforms::Matcher;

use crate::document::{Config, Documents};
use crate::handler::{Children, Handler};

/// A chosen manifest and its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The manifest.
    pub manifest: Descriptor,
    /// The config's descriptor.
    pub config_descriptor: Descriptor,
    /// The config.
    pub config: Config,
    /// The descriptors in the manifest's list of layers.
    pub layers: Vec<Descriptor>,
}

impl Choice {
    /// Returns the platform by which the choice was made: that in the index, or else that in the
    /// config.
    pub fn platform(&self) -> Platform {
        let listed = self.manifest.platform.as_ref();
        listed.unwrap_or(&self.config.platform).normalized()
    }

    /// Returns a handler that answers for the chosen manifest without reading it again, and reads
    /// the children of all other descriptors from `content` in `scope`.
    pub fn children(&self, content: Arc<dyn ContentReader>, scope: Scope) -> ChoiceChildren {
        let config = std::iter::once(&self.config_descriptor);
        ChoiceChildren {
            manifest: self.manifest.digest.clone(),
            children: config.chain(&self.layers).cloned().collect(),
            others: Children::new(content, scope),
        }
    }
}

/// The handler of a [`Choice`].
#[derive(Debug, Clone)]
pub struct ChoiceChildren {
    manifest: Digest,
    /// The config and the layers of the manifest.
    children: Vec<Descriptor>,
    others: Children,
}

#[async_trait]
impl Handler for ChoiceChildren {
    async fn handle(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        let is_manifest = media_type::is_manifest(&descriptor.media_type);
        if is_manifest && descriptor.digest == self.manifest {
            return Ok(self.children.clone());
        }
        self.others.handle(descriptor).await
    }
}

/// The reason why no manifest was chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing matches; lists platforms of the image, at most 32.
    #[error("no manifest for the platform")]
    NoMatch(Vec<Platform>),
    /// A document could not be read.
    #[error(transparent)]
    Content(#[from] Error),
}

/// Chooses the manifest of `target`, an index or a manifest, that `matcher` prefers. Entries are
/// filtered by their platform in the index and ordered by the matcher, those without a platform
/// last; an entry without a platform is judged by its config. If the content of the best entry is
/// missing, the choice fails: no other platform replaces it.
///
/// # Errors
/// [`ChoiceError::NoMatch`] if no manifest matches; [`ChoiceError::Content`] for errors of
/// [`rootfs`](crate::rootfs) and of the content port.
pub async fn choose_manifest(
    content: &dyn ContentReader,
    scope: &Scope,
    target: &Descriptor,
    matcher: &Matcher,
) -> Result<Choice, ChoiceError> {
    let mut walk = Walk {
        documents: Documents::new(content, scope),
        matcher,
        seen: BTreeSet::new(),
        visited: HashSet::new(),
        reads_left: MAX_DOCUMENTS,
        skipped: None,
    };
    match walk.choose(target, MAX_DEPTH).await? {
        Some(choice) => Ok(choice),
        None => match walk.skipped {
            Some(error) if walk.seen.is_empty() => Err(error.into()),
            _ => Err(ChoiceError::NoMatch(walk.seen.into_iter().collect())),
        },
    }
}

/// Returns the platforms in an index, in its order; none for a manifest.
///
/// # Errors
/// Errors of the content port, and an invalid index.
pub async fn listed_platforms(
    content: &dyn ContentReader,
    scope: &Scope,
    target: &Descriptor,
) -> Result<Vec<Platform>> {
    if !media_type::is_index(&target.media_type) {
        return Ok(Vec::new());
    }
    let index = Documents::new(content, scope).index(target).await?;
    let entries = index.manifests.into_iter();
    Ok(entries.filter_map(|entry| entry.platform).collect())
}

/// The limit on the nesting of indexes. Real images have one.
const MAX_DEPTH: usize = 8;

/// The limit on the indexes and manifests read for one choice. A usual index takes two; one whose
/// entries have no platform takes a read for each.
const MAX_DOCUMENTS: usize = 256;

/// The limit on the platforms listed if none matches.
const MAX_SEEN: usize = 32;

struct Walk<'a> {
    documents: Documents<'a>,
    matcher: &'a Matcher,
    /// The platforms that did not match.
    seen: BTreeSet<Platform>,
    /// The documents that were read; reading them again finds nothing new.
    visited: HashSet<Digest>,
    reads_left: usize,
    /// The error of the last entry that was no image.
    skipped: Option<Error>,
}

impl Walk<'_> {
    async fn choose(&mut self, node: &Descriptor, depth: usize) -> Result<Option<Choice>> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or_else(|| {
            Error::new(Kind::ResourceExhausted, "read index", node.digest.as_str()).with_source(
                format!("more than {MAX_DOCUMENTS} manifests had to be read for a choice"),
            )
        })?;
        if !self.visited.insert(node.digest.clone()) {
            return Ok(None);
        }
        if media_type::is_manifest(&node.media_type) {
            return self.manifest(node).await;
        }
        if !media_type::is_index(&node.media_type) {
            return Err(
                Error::new(Kind::InvalidArgument, "read", node.digest.as_str()).with_source(
                    format!(
                        "its media type {:?} is neither an index nor a manifest",
                        node.media_type
                    ),
                ),
            );
        }
        if depth == 0 {
            return Err(
                Error::new(Kind::ResourceExhausted, "read index", node.digest.as_str())
                    .with_source(format!("indexes are nested more than {MAX_DEPTH} deep")),
            );
        }
        let index = self.documents.index(node).await?;
        let candidates: Vec<&Descriptor> = self.matcher.pick(
            index
                .manifests
                .iter()
                .map(|entry| (entry.platform.as_ref(), entry)),
        );
        for candidate in candidates {
            match Box::pin(self.choose(candidate, depth - 1)).await {
                Ok(None) => {}
                // An entry without a platform may be no image at all.
                Err(error)
                    if candidate.platform.is_none() && error.kind() == Kind::InvalidArgument =>
                {
                    self.skipped = Some(error);
                }
                decided => return decided,
            }
        }
        for platform in index
            .manifests
            .into_iter()
            .filter_map(|entry| entry.platform)
        {
            self.see(platform);
        }
        Ok(None)
    }

    fn see(&mut self, platform: Platform) {
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(platform);
        }
    }

    async fn manifest(&mut self, node: &Descriptor) -> Result<Option<Choice>> {
        let manifest = self.documents.manifest(node).await?;
        let config = self.documents.rootfs(&manifest.config).await?;
        if node.platform.is_none() && !self.matcher.matches(&config.platform) {
            self.see(config.platform);
            return Ok(None);
        }
        Ok(Some(Choice {
            manifest: node.clone(),
            config_descriptor: manifest.config,
            config,
            layers: manifest.layers,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;
    use resnap_core::{ByteStream, ContentInfo, Labels, LargeReadPermit, Work};

    use super::*;
    use crate::MAX_DOCUMENT_BYTES;
    use crate::document::MAX_BYTES;

    /// Blobs, and counters of the bytes read, of work elsewhere and of admissions.
    #[derive(Default)]
    struct Store {
        blobs: BTreeMap<Digest, Vec<u8>>,
        read: AtomicUsize,
        worked: AtomicUsize,
        admitted: AtomicUsize,
    }

    impl Store {
        /// Adds a document, and returns a descriptor that states a size of 0.
        fn add(&mut self, media_type: &str, document: &str) -> String {
            let digest = Digest::sha256(document.as_bytes());
            let json = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":0}}"#);
            self.blobs.insert(digest, document.into());
            json
        }
    }

    #[async_trait]
    impl ContentReader for Store {
        async fn info(&self, _: &Scope, digest: &Digest) -> Result<ContentInfo> {
            Ok(ContentInfo {
                size: self.blobs[digest].len() as u64,
                labels: Labels::new(),
            })
        }

        async fn open(&self, _: &Scope, digest: &Digest) -> Result<ByteStream> {
            let bytes = self.blobs[digest].clone();
            self.read.fetch_add(bytes.len(), Ordering::Relaxed);
            Ok(futures::stream::iter([Ok(bytes.into())]).boxed())
        }

        async fn work(&self, work: Work) {
            self.worked.fetch_add(1, Ordering::Relaxed);
            work();
        }

        async fn admit_large_read(&self) -> LargeReadPermit {
            self.admitted.fetch_add(1, Ordering::Relaxed);
            Box::new(())
        }
    }

    #[test]
    fn limits_count_bytes_read_instead_of_stated_sizes() {
        let mut store = Store::default();
        let padding = "x".repeat(MAX_DOCUMENT_BYTES / 2);
        let config = format!(r#"{{"os":"odd","architecture":"odd","padding":"{padding}"}}"#);
        let config = store.add(media_type::OCI_CONFIG, &config);
        let manifests: Vec<String> = (0..100)
            .map(|number| {
                let manifest = format!(r#"{{"config":{config},"number":{number}}}"#);
                store.add(media_type::OCI_MANIFEST, &manifest)
            })
            .collect();
        let index = format!(r#"{{"manifests":[{}]}}"#, manifests.join(","));
        let target = store.add(media_type::OCI_INDEX, &index);
        let target: Descriptor = serde_json::from_str(&target).unwrap();

        let (scope, matcher) = (Scope::new("k8s.io"), Matcher::default());
        let choice = choose_manifest(&store, &scope, &target, &matcher);
        let error = futures::executor::block_on(choice).unwrap_err();
        assert!(
            matches!(&error, ChoiceError::Content(error) if error.kind() == Kind::ResourceExhausted),
            "{error:?}"
        );
        assert!(store.read.into_inner() <= MAX_BYTES + MAX_DOCUMENT_BYTES);
        // Hashed and parsed, except for the last one, whose size is checked first.
        let configs = MAX_BYTES / (MAX_DOCUMENT_BYTES / 2);
        assert_eq!(store.worked.into_inner(), 2 * configs - 1);
        // Once for all, in spite of what is claimed.
        assert_eq!(store.admitted.into_inner(), 1);
    }

    #[test]
    fn small_documents_need_no_admission() {
        let mut store = Store::default();
        let config = r#"{"os":"linux","architecture":"amd64","padding":"x"}"#;
        let config = store.add(media_type::OCI_CONFIG, config);
        let manifest = format!(r#"{{"config":{config}}}"#);
        let manifest = store.add(media_type::OCI_MANIFEST, &manifest);
        let index = format!(r#"{{"manifests":[{manifest}]}}"#);
        let target = store.add(media_type::OCI_INDEX, &index);
        let target: Descriptor = serde_json::from_str(&target).unwrap();

        let (scope, matcher) = (
            Scope::new("k8s.io"),
            Matcher::ordered(&[Platform::default()]),
        );
        let choice = choose_manifest(&store, &scope, &target, &matcher);
        // Only the reads matter here.
        let _ = futures::executor::block_on(choice);
        assert!(store.read.into_inner() > index.len());
        assert_eq!(store.admitted.into_inner(), 0);
    }
}
