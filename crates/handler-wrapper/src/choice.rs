// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Choosing the manifest of a platform (containerd `core/images/image.go`, `Manifest`).

use std::collections::{BTreeSet, HashSet};

use resnap_core::{
    ContentReader, Descriptor, Digest, Error, Kind, Platform, Result, Scope, media_type,
};
use resnap_platforms::Matcher;

use crate::document::{Config, MAX_DOCUMENT_BYTES, index, manifest, rootfs};

/// The manifest that was chosen, and what is in its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The manifest.
    pub manifest: Descriptor,
    /// The config's descriptor.
    pub config_descriptor: Descriptor,
    /// The config.
    pub config: Config,
    /// What the manifest lists as layers.
    pub layers: Vec<Descriptor>,
}

impl Choice {
    /// The platform by which the choice was made: the index's word, else the config's.
    pub fn platform(&self) -> Platform {
        let listed = self.manifest.platform.as_ref();
        listed.unwrap_or(&self.config.platform).normalized()
    }
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing matches; these are platforms the image has, at most 32 of them.
    #[error("no manifest for the platform")]
    NoMatch(Vec<Platform>),
    /// A document could not be read.
    #[error(transparent)]
    Content(#[from] Error),
}

/// Chooses from `target`, an index or a manifest, the manifest that `matcher` likes best: entries
/// are filtered by the platform the index gives them and ordered by the matcher, those without a
/// platform last; an entry without one is judged by its config. The best entry's content must be
/// there: another platform is never taken in its stead.
///
/// # Errors
/// [`ChoiceError::NoMatch`] lists what there is. [`ChoiceError::Content`] holds what
/// [`rootfs`] and the content port say.
pub async fn choose_manifest(
    content: &dyn ContentReader,
    scope: &Scope,
    target: &Descriptor,
    matcher: &Matcher,
) -> Result<Choice, ChoiceError> {
    let mut walk = Walk {
        content,
        scope,
        matcher,
        seen: BTreeSet::new(),
        visited: HashSet::new(),
        reads_left: MAX_DOCUMENTS,
        bytes_left: MAX_BYTES,
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

/// The platforms that an index names, in its order; none for what is no index.
///
/// # Errors
/// What the content port says, and what is wrong with the index.
pub async fn listed_platforms(
    content: &dyn ContentReader,
    scope: &Scope,
    target: &Descriptor,
) -> Result<Vec<Platform>> {
    if !media_type::is_index(&target.media_type) {
        return Ok(Vec::new());
    }
    let index = index(content, scope, target).await?;
    let entries = index.manifests.into_iter();
    Ok(entries.filter_map(|entry| entry.platform).collect())
}

/// Indexes within indexes that are followed. Real images have one.
const MAX_DEPTH: usize = 8;

/// Indexes and manifests that are read for one choice. A good index takes two; one whose entries
/// give no platform takes a read for each.
const MAX_DOCUMENTS: usize = 256;

/// Bytes of documents that are read for one choice.
const MAX_BYTES: u64 = 4 * MAX_DOCUMENT_BYTES as u64;

/// Platforms that are told of where none matches.
const MAX_SEEN: usize = 32;

struct Walk<'a> {
    content: &'a dyn ContentReader,
    scope: &'a Scope,
    matcher: &'a Matcher,
    /// Platforms met that did not match.
    seen: BTreeSet<Platform>,
    /// Documents that were read; reading one again finds nothing new.
    visited: HashSet<Digest>,
    reads_left: usize,
    bytes_left: u64,
    /// The last entry that was no image.
    skipped: Option<Error>,
}

impl Walk<'_> {
    async fn choose(&mut self, node: &Descriptor, depth: usize) -> Result<Option<Choice>> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or_else(|| {
            Error::new(Kind::ResourceExhausted, "read index", node.digest.as_str()).because(
                format!("more than {MAX_DOCUMENTS} manifests had to be read for a choice"),
            )
        })?;
        if !self.visited.insert(node.digest.clone()) {
            return Ok(None);
        }
        self.bytes_left = self.bytes_left.checked_sub(node.size).ok_or_else(|| {
            Error::new(Kind::ResourceExhausted, "read", node.digest.as_str()).because(format!(
                "more than {MAX_BYTES} bytes of documents had to be read for a choice"
            ))
        })?;
        if media_type::is_manifest(&node.media_type) {
            return self.manifest(node).await;
        }
        if !media_type::is_index(&node.media_type) {
            return Err(
                Error::new(Kind::InvalidArgument, "read", node.digest.as_str()).because(format!(
                    "its media type {:?} is neither an index nor a manifest",
                    node.media_type
                )),
            );
        }
        if depth == 0 {
            return Err(
                Error::new(Kind::ResourceExhausted, "read index", node.digest.as_str())
                    .because(format!("indexes are nested more than {MAX_DEPTH} deep")),
            );
        }
        let index = index(self.content, self.scope, node).await?;
        let candidates: Vec<&Descriptor> = self.matcher.pick(
            index
                .manifests
                .iter()
                .map(|entry| (entry.platform.as_ref(), entry)),
        );
        for candidate in candidates {
            match Box::pin(self.choose(candidate, depth - 1)).await {
                Ok(None) => {}
                // What an index lists without a platform may be no image at all.
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
        let manifest = manifest(self.content, self.scope, node).await?;
        let config = rootfs(self.content, self.scope, &manifest.config).await?;
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
