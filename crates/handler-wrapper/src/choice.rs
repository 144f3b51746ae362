// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Choosing the manifest of a platform (containerd `core/images/image.go`, `Manifest`).

use resnap_core::{ContentReader, Descriptor, Error, Kind, Platform, Result, Scope, media_type};
use resnap_platforms::Matcher;

use crate::document::{Config, Index, manifest, read, rootfs};

/// The manifest that was chosen, and what is in its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The manifest.
    pub manifest: Descriptor,
    /// The config's descriptor.
    pub config_descriptor: Descriptor,
    /// The config.
    pub config: Config,
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing matches; these are the platforms the image has.
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
        seen: Vec::new(),
        reads_left: MAX_DOCUMENTS,
    };
    match walk.choose(target, MAX_DEPTH).await? {
        Some(choice) => Ok(choice),
        None => Err(ChoiceError::NoMatch(walk.seen)),
    }
}

/// Indexes within indexes that are followed. Real images have one.
const MAX_DEPTH: usize = 8;

/// Indexes and manifests that are read for one choice. A good index takes two; one whose entries
/// give no platform takes a read for each.
const MAX_DOCUMENTS: usize = 256;

struct Walk<'a> {
    content: &'a dyn ContentReader,
    scope: &'a Scope,
    matcher: &'a Matcher,
    /// Platforms met that did not match.
    seen: Vec<Platform>,
    reads_left: usize,
}

impl Walk<'_> {
    async fn choose(&mut self, node: &Descriptor, depth: usize) -> Result<Option<Choice>> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or_else(|| {
            Error::new(Kind::ResourceExhausted, "read index", node.digest.as_str()).because(
                format!("more than {MAX_DOCUMENTS} manifests had to be read for a choice"),
            )
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
        let index: Index = read(self.content, self.scope, node).await?;
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
                    if candidate.platform.is_none() && error.kind() == Kind::InvalidArgument => {}
                decided => return decided,
            }
        }
        self.seen.extend(
            index
                .manifests
                .into_iter()
                .filter_map(|entry| entry.platform),
        );
        Ok(None)
    }

    async fn manifest(&mut self, node: &Descriptor) -> Result<Option<Choice>> {
        let manifest = manifest(self.content, self.scope, node).await?;
        let config = rootfs(self.content, self.scope, &manifest.config).await?;
        if node.platform.is_none() && !self.matcher.matches(&config.platform) {
            self.seen.push(config.platform);
            return Ok(None);
        }
        Ok(Some(Choice {
            manifest: node.clone(),
            config_descriptor: manifest.config,
            config,
        }))
    }
}
