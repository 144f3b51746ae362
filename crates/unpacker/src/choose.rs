// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Which manifest of an image goes to which snapshotter.

use std::collections::BTreeSet;

use resnap_core::{
    ChainId, Descriptor, Digest, EROFS_FEATURE, Error, Kind, ManifestPreference, Platform,
    SnapshotKey, media_type,
};
use resnap_handler_wrapper::{Choice, ChoiceError, choose_manifest};
use resnap_platforms::Matcher;

use crate::engine::Inner;
use crate::plan::host_matcher;
use crate::{Plan, Request, ResolvedImage, UnpackError};

/// What is unpacked where, unless the user says so (the idea of containerd's transfer service,
/// `plugins/transfer/plugin.go`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The platform that the image has to have.
    pub platform: Platform,
    /// Where it goes.
    pub snapshotter: String,
    /// Whether it is passed over where that snapshotter is not there, instead of an error.
    pub optional: bool,
}

impl Configuration {
    /// The plain platform of this machine on `default`, and EROFS images on the erofs snapshotter,
    /// where there is one.
    pub fn defaults(default: &str) -> Vec<Self> {
        vec![
            Self {
                platform: Platform::host(),
                snapshotter: default.to_owned(),
                optional: false,
            },
            Self {
                platform: with_features([EROFS_FEATURE.to_owned()]),
                snapshotter: "erofs".to_owned(),
                optional: true,
            },
        ]
    }
}

/// This machine's platform, and what else it offers.
fn with_features(features: impl IntoIterator<Item = String>) -> Platform {
    Platform {
        os_features: features.into_iter().collect(),
        ..Platform::host()
    }
}

/// A choice, and whether the same will be chosen as long as the image's target stays.
pub(crate) struct Chosen {
    pub(crate) choice: Choice,
    pub(crate) lasting: bool,
}

/// The platform that was asked for, or else this machine's.
pub(crate) fn wanted(request: &Request) -> Platform {
    request.platform.clone().unwrap_or_else(Platform::host)
}

/// Chooses the manifest that `request` is about.
pub(crate) async fn choose(
    engine: &Inner,
    image: &ResolvedImage,
    request: &Request,
) -> Result<Chosen, ChoiceError> {
    let manifest = async |matcher: &Matcher| {
        let content = engine.ports.content.as_ref();
        choose_manifest(content, &engine.scope, &image.target, matcher).await
    };
    let lasting = async |matcher: Matcher| {
        manifest(&matcher).await.map(|choice| Chosen {
            choice,
            lasting: true,
        })
    };
    if let Some(platform) = &request.platform {
        return lasting(Matcher::only(platform)).await;
    }
    let plain = host_matcher(&image.target);
    let features = &engine.profiles.get(&request.snapshotter).os_features;
    let native = match request.pick {
        ManifestPreference::First => {
            let first = lasting(plain.clone().ignoring_features()).await?;
            // An image's ID is the config of what containerd has chosen: by that the builds are told
            // apart that have a newer containerd/platforms than their version says.
            let id = request.image.parse::<Digest>().ok();
            if id.is_some_and(|id| id != first.choice.config_descriptor.digest) {
                return lasting(plain).await;
            }
            return Ok(first);
        }
        ManifestPreference::Best if !features.is_empty() => with_features(features.iter().cloned()),
        ManifestPreference::Best | ManifestPreference::Plain => return lasting(plain).await,
    };
    if media_type::is_manifest(&image.target.media_type) {
        return lasting(plain).await;
    }
    let native = manifest(&Matcher::only(&native)).await;
    let is_whole = match &native {
        Ok(choice) if choice.platform().os_features.is_empty() => {
            return native.map(|choice| Chosen {
                choice,
                lasting: true,
            });
        }
        Ok(choice) => is_whole(engine, choice, &request.snapshotter).await,
        Err(ChoiceError::Content(error)) if error.is_not_found() => false,
        Err(_) => true,
    };
    let choice = if is_whole {
        native?
    } else {
        match manifest(&plain).await {
            // There is nothing else: what is missing of it will be told.
            Err(ChoiceError::NoMatch(_)) => native?,
            plain => plain?,
        }
    };
    // What is on the node comes and goes.
    Ok(Chosen {
        choice,
        lasting: false,
    })
}

/// Whether all layers are on the node, as blobs or unpacked.
async fn is_whole(engine: &Inner, choice: &Choice, snapshotter: &str) -> bool {
    let mut top: Option<ChainId> = None;
    for diff_id in &choice.config.diff_ids {
        top = Some(ChainId::of(top.as_ref(), diff_id));
    }
    if let Some(top) = top {
        let snapshotter = engine.ports.snapshotters.snapshotter(snapshotter);
        let key = SnapshotKey::from(&top);
        if snapshotter.stat(&engine.scope, &key).await.is_ok() {
            return true;
        }
    }
    for layer in &choice.layers {
        let info = engine.ports.content.info(&engine.scope, &layer.digest);
        if info.await.is_err() {
            return false;
        }
    }
    true
}

/// What the snapshotter of an image has to take: what its config asks for, and EROFS images where
/// layers are such.
pub(crate) fn os_features(config: &Platform, layers: &[Descriptor]) -> BTreeSet<String> {
    let mut features: BTreeSet<String> = config.os_features.iter().cloned().collect();
    if layers
        .iter()
        .any(|layer| media_type::is_erofs(&layer.media_type))
    {
        features.insert(EROFS_FEATURE.to_owned());
    }
    features
}

impl Inner {
    /// That the snapshotter takes what the image asks for, and the user (containerd
    /// `client/image.go`, `checkSnapshotterSupport`, which asks the snapshotter's plugin; up to 2.4
    /// none says so).
    pub(crate) async fn require_support(
        &self,
        plan: &Plan,
        request: &Request,
    ) -> Result<(), UnpackError> {
        let snapshotter = &request.snapshotter;
        let asked = request.platform.iter().flat_map(|asked| &asked.os_features);
        let needed: BTreeSet<String> = plan.os_features.iter().chain(asked).cloned().collect();
        if snapshotter.is_empty() || self.profiles.not_taken(snapshotter, &needed).is_empty() {
            return Ok(());
        }
        let takes = |name: &&str| self.profiles.not_taken(name, &needed).is_empty();
        let known = self.profiles.iter().map(|(name, _)| name);
        let takers: Vec<String> = known.filter(takes).map(str::to_owned).collect();
        let unknown = needed
            .iter()
            .filter(|feature| {
                let mut profiles = self.profiles.iter();
                !profiles.any(|(_, profile)| profile.os_features.contains(*feature))
            })
            .cloned()
            .collect();
        let others = self.platforms(&plan.image.target).await;
        let mut others: Vec<Platform> = others
            .into_iter()
            .filter(|other| {
                self.profiles
                    .not_taken(snapshotter, &other.os_features)
                    .is_empty()
            })
            .collect();
        others.sort();
        others.dedup();
        let mut platform = plan.platform.clone();
        platform.os_features = needed.into_iter().collect();
        Err(UnpackError::Unsupported {
            image: plan.image.name.clone(),
            config: plan.config.digest.clone(),
            platform: platform.to_string(),
            snapshotter: snapshotter.clone(),
            unknown,
            takers,
            others,
        })
    }

    /// The platforms that an index names.
    pub(crate) async fn platforms(&self, target: &Descriptor) -> Vec<Platform> {
        let (content, nothing) = (self.ports.content.as_ref(), Matcher::ordered(&[]));
        match choose_manifest(content, &self.scope, target, &nothing).await {
            Err(ChoiceError::NoMatch(platforms)) => platforms,
            // What cannot be read is not there to be taken.
            _ => Vec::new(),
        }
    }

    /// Says where `request` goes, if it does not itself: by the first of the configurations that
    /// the image and this containerd have.
    pub(crate) async fn settle(&self, request: &mut Request) -> Result<(), UnpackError> {
        if !request.snapshotter.is_empty() {
            return Ok(());
        }
        let there = self.ports.introspection.snapshotters().await?;
        let works = |name: &str| {
            let mut there = there.iter();
            there.any(|info| info.name == name && info.failure.is_none())
        };
        let image = crate::image::resolve(&self.ports, &self.scope, &request.image).await?;
        let takes = |snapshotter: &str, platform: &Platform| {
            let not_taken = self.profiles.not_taken(snapshotter, &platform.os_features);
            not_taken.is_empty()
        };
        let mut passed_over: Option<&str> = None;
        let mut first: Option<Request> = None;
        for configuration in &self.configurations {
            let Configuration {
                platform,
                snapshotter,
                optional,
            } = configuration;
            let wanted = request.platform.as_ref().unwrap_or(platform);
            let takes = takes(snapshotter, wanted);
            if !works(snapshotter) {
                if takes && !optional {
                    self.require_snapshotter(snapshotter).await?;
                }
                if takes {
                    passed_over.get_or_insert(snapshotter);
                }
                continue;
            }
            let settled = Request {
                snapshotter: snapshotter.clone(),
                platform: Some(wanted.clone()),
                ..request.clone()
            };
            if takes && (request.platform.is_some() || self.has(&image, &settled).await?) {
                *request = settled;
                return Ok(());
            }
            first.get_or_insert(settled);
        }
        if let (Some(_), Some(passed_over)) = (&request.platform, passed_over) {
            self.require_snapshotter(passed_over).await?;
        }
        let Some(mut first) = first else {
            let platform = wanted(request);
            return Err(UnpackError::Backend(
                Error::new(
                    Kind::FailedPrecondition,
                    "choose a snapshotter for",
                    platform.to_string(),
                )
                .with_source("no unpack configuration is for it; name a snapshotter"),
            ));
        };
        if media_type::is_manifest(&image.target.media_type) {
            // Chosen by whoever pulled it.
            first.platform.clone_from(&request.platform);
        }
        // What is wrong with it is told when it is planned.
        *request = first;
        Ok(())
    }

    /// Whether the image has a manifest of just the platform that is asked for.
    async fn has(&self, image: &ResolvedImage, request: &Request) -> Result<bool, UnpackError> {
        let Ok(chosen) = choose(self, image, request).await else {
            return Ok(false);
        };
        let has = os_features(&chosen.choice.platform(), &chosen.choice.layers);
        let wants = wanted(request).os_features;
        Ok(wants.iter().all(|feature| has.contains(feature)))
    }
}

#[cfg(test)]
mod tests;
