// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Image names: from the name that a user or kubelet writes to an image record and a reference to
//! pull by.

use std::collections::BTreeSet;

use oci_spec::distribution::Reference;
use resnap_core::{Descriptor, Digest, Error, Image, Kind, Platform, Ports, Scope, media_type};
use resnap_handler_wrapper::{ChoiceError, choose_manifest};
use resnap_platforms::Matcher;

use crate::{Fetch, UnpackError};

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The name of the record.
    pub name: String,
    /// The index or manifest.
    pub target: Descriptor,
    /// The reference to pull by: with a tag if possible, otherwise with a digest; never a bare ID.
    pub reference: Option<String>,
    /// The image ID, if the image was found by it.
    pub id: Option<Digest>,
}

impl ResolvedImage {
    /// Returns the arguments for fetching missing content of the manifest for `platform`.
    pub(crate) fn fetch(&self, platform: Option<&Platform>) -> Fetch {
        let reference = self.reference.as_deref().filter(|name| {
            // The names in an archive may have no host, and then no registry.
            let host = name.split_once('/').map_or("", |(host, _)| host);
            host == "localhost" || host.contains(['.', ':'])
        });
        let foreign = platform.filter(|platform| !Matcher::default().matches(platform));
        Fetch {
            reference: reference.map(str::to_owned),
            platform: foreign.map(ToString::to_string),
        }
    }
}

/// Returns the matcher for this machine. The platform of a manifest without an index was chosen when
/// it was pulled, so it is not checked (containerd `core/images/image.go`, `Manifest`, reads no
/// config then).
pub(crate) fn host_matcher(target: &Descriptor) -> Matcher {
    if media_type::is_manifest(&target.media_type) {
        Matcher::all()
    } else {
        Matcher::default()
    }
}

/// Finds an image by, in this order: its exact name; its normalised Docker name (`web` is
/// `docker.io/library/web:latest`); for a name with a digest, a tag of the same repository with
/// that digest; its image ID or a prefix of it.
pub(crate) async fn resolve(
    ports: &Ports,
    scope: &Scope,
    image: &str,
) -> Result<ResolvedImage, UnpackError> {
    match ports.images.get(scope, image).await {
        Ok(image) => return with_reference(ports, scope, image).await,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(name) = normalise(image) {
        match ports.images.get(scope, &name).await {
            Ok(image) => return with_reference(ports, scope, image).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let images = ports.images.list(scope).await?;
    let found = match digested(image) {
        Some(wanted) => match with_digest(&images, &wanted) {
            Some(found) => Some(with_reference(ports, scope, found.clone()).await?),
            None => None,
        },
        None => by_id(ports, scope, image, &images).await?,
    };
    found.ok_or_else(|| UnpackError::NoSuchImage {
        image: image.to_owned(),
        namespace: scope.namespace.to_string(),
        tags: similar(images, image),
    })
}

/// The limit on the names that are told instead of one that does not exist.
const MAX_SIMILAR: usize = 3;

/// Parses a Docker name; `None` for a bare ID and for any other text.
fn docker_name(name: &str) -> Option<Reference> {
    name.parse().ok().filter(|_| rank(name) != Rank::BareId)
}

/// Parses a Docker name with a digest; `None` for any other name.
fn digested(name: &str) -> Option<Reference> {
    docker_name(name).filter(|reference| reference.digest().is_some())
}

/// Returns the image of the repository of `wanted` that has its digest.
fn with_digest<'a>(images: &'a [Image], wanted: &Reference) -> Option<&'a Image> {
    let has_digest = |image: &&Image| wanted.digest() == Some(image.target.digest.as_str());
    let same = images.iter().filter(has_digest);
    let same = same.filter(|image| {
        docker_name(&image.name).is_some_and(|name| is_same_repository(&name, wanted))
    });
    same.min_by_key(|image| &image.name)
}

fn is_same_repository(left: &Reference, right: &Reference) -> bool {
    left.registry() == right.registry() && left.repository() == right.repository()
}

/// Returns the names of the same repository, and then those of repositories that end with the same part, each with its
/// digest.
fn similar(images: Vec<Image>, wanted: &str) -> Vec<(String, Digest)> {
    let Some(wanted) = docker_name(wanted) else {
        return Vec::new();
    };
    let last_part = |name: &Reference| name.repository().rsplit('/').next().map(str::to_owned);
    let mut similar = Vec::new();
    for image in images {
        if let Some(name) = docker_name(&image.name)
            && last_part(&name) == last_part(&wanted)
        {
            let distance = (!is_same_repository(&name, &wanted), rank(&image.name));
            similar.push((distance, image.name, image.target.digest));
        }
    }
    similar.sort();
    let similar = similar.into_iter().take(MAX_SIMILAR);
    similar.map(|(_, name, digest)| (name, digest)).collect()
}

/// Returns the full form of a Docker name, as the CRI plugin stores it: if there are a tag and a
/// digest, the tag is dropped (containerd `pkg/reference`, `ParseDockerRef`). `None` for a bare ID
/// and for any other text.
pub(crate) fn normalise(name: &str) -> Option<String> {
    if rank(name) == Rank::BareId {
        return None;
    }
    let reference: Reference = name.parse().ok()?;
    Some(match reference.digest() {
        Some(digest) => {
            let (registry, repository) = (reference.registry(), reference.repository());
            format!("{registry}/{repository}@{digest}")
        }
        None => reference.whole(),
    })
}

/// The order in which names are preferred for pulling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Tagged,
    Digested,
    BareId,
}

pub(crate) fn rank(name: &str) -> Rank {
    // A bare ID would also parse as a repository "sha256" with a long tag.
    if name.parse::<Digest>().is_ok() {
        Rank::BareId
    } else if name.contains('@') {
        Rank::Digested
    } else {
        Rank::Tagged
    }
}

async fn with_reference(
    ports: &Ports,
    scope: &Scope,
    image: Image,
) -> Result<ResolvedImage, UnpackError> {
    if rank(&image.name) == Rank::Tagged {
        let reference = Some(image.name.clone());
        return Ok(ResolvedImage {
            name: image.name,
            target: image.target,
            reference,
            id: None,
        });
    }
    let same = ports.images.of_target(scope, &image.target.digest).await?;
    let reference = best_reference(&same);
    Ok(ResolvedImage {
        id: image.name.parse().ok(),
        name: image.name,
        target: image.target,
        reference,
    })
}

fn best_reference(images: &[Image]) -> Option<String> {
    let names = images.iter().map(|image| &image.name);
    names
        .filter(|name| rank(name) != Rank::BareId)
        .min_by_key(|name| (rank(name), *name))
        .cloned()
}

async fn by_id(
    ports: &Ports,
    scope: &Scope,
    prefix: &str,
    images: &[Image],
) -> Result<Option<ResolvedImage>, UnpackError> {
    let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let hex = hex.to_ascii_lowercase();
    let mut found = Vec::new();
    let mut ids = BTreeSet::new();
    for image in images {
        let Some(id) = image_id(ports, scope, image).await? else {
            continue;
        };
        if id.encoded().starts_with(&hex) {
            ids.insert(id);
            found.push(image.clone());
        }
    }
    if ids.len() > 1 {
        let ids = ids.iter().map(ToString::to_string).collect();
        return Err(UnpackError::AmbiguousId {
            prefix: prefix.to_owned(),
            ids,
        });
    }
    found.sort_by(|left, right| {
        (rank(&left.name), &left.name).cmp(&(rank(&right.name), &right.name))
    });
    let reference = best_reference(&found);
    Ok(found.into_iter().next().map(|image| ResolvedImage {
        name: image.name,
        target: image.target,
        reference,
        id: ids.into_iter().next(),
    }))
}

/// Returns the image ID as the CRI plugin and `docker` define it: the config's digest. `None` if
/// the image is incomplete or not for this machine; such an image is known by its name.
pub(crate) async fn image_id(
    ports: &Ports,
    scope: &Scope,
    image: &Image,
) -> Result<Option<Digest>, Error> {
    if let Ok(id) = image.name.parse() {
        return Ok(Some(id));
    }
    let content = ports.content.as_ref();
    let matcher = host_matcher(&image.target);
    match choose_manifest(content, scope, &image.target, &matcher).await {
        Ok(choice) => Ok(Some(choice.config_descriptor.digest)),
        Err(ChoiceError::Content(error)) if is_backend_failure(error.kind()) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Returns whether an error concerns the backend rather than the image.
pub(crate) fn is_backend_failure(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Cancelled | Kind::DeadlineExceeded | Kind::PermissionDenied | Kind::Unavailable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Image {
        let target = Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b"x"),
            size: 0,
            annotations: Default::default(),
            platform: None,
        };
        Image {
            name: name.to_owned(),
            target,
            labels: Default::default(),
        }
    }

    #[test]
    fn names_are_read_as_docker_writes_them() {
        let digest = Digest::sha256(b"x").to_string();
        for (name, whole) in [
            ("web", "docker.io/library/web:latest".to_owned()),
            ("me/web:1", "docker.io/me/web:1".to_owned()),
            ("localhost:5000/web", "localhost:5000/web:latest".to_owned()),
            (
                &format!("web:1@{digest}"),
                format!("docker.io/library/web@{digest}"),
            ),
        ] {
            assert_eq!(normalise(name), Some(whole), "{name}");
        }
        assert_eq!(normalise(&digest), None);
        assert_eq!(normalise("No Name"), None);
    }

    #[test]
    fn the_nearest_names_are_told_first() {
        let names = [
            "docker.io/library/web:1",
            "docker.io/library/web:2",
            "docker.io/me/web:1",
            "localhost:5000/web:1",
            "docker.io/library/web-server:1",
            "docker.io/library/other:1",
            &format!("docker.io/library/web@{}", Digest::sha256(b"x")),
            &Digest::sha256(b"web").to_string(),
            "no name",
        ];
        let told = |wanted| {
            let tags = similar(names.map(image).into(), wanted);
            let tags: Vec<String> = tags.into_iter().map(|(name, _)| name).collect();
            tags
        };
        assert_eq!(told("web"), [names[0], names[1], names[6]]);
        assert_eq!(told("me/web"), [names[2], names[0], names[1]]);
        assert_eq!(told("quay.io/a/b/other:3"), [names[5]]);
        for none in ["nothing", "No Name", names[7], "0123"] {
            assert!(told(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn names_with_a_registry_can_be_fetched() {
        let fetch = |reference: Option<&str>, platform: Option<&str>| {
            let image = ResolvedImage {
                name: "a".to_owned(),
                target: image("").target,
                reference: reference.map(str::to_owned),
                id: None,
            };
            let platform = platform.map(|platform| platform.parse::<Platform>().unwrap());
            let Fetch {
                reference,
                platform,
            } = image.fetch(platform.as_ref());
            (reference, platform)
        };
        let here = Platform::host().to_string();
        let web = "docker.io/library/web:1";
        let only = |reference: &str| (Some(reference.to_owned()), None);
        assert_eq!(fetch(Some(web), Some(&here)), only(web));
        assert_eq!(fetch(Some(web), None), only(web));
        let foreign = fetch(Some("localhost:5000/a:1"), Some("linux/s390x"));
        assert_eq!(foreign.0.as_deref(), Some("localhost:5000/a:1"));
        assert_eq!(foreign.1.as_deref(), Some("linux/s390x"));
        let local = fetch(Some("import-2026-11-27@sha256:00"), None);
        assert_eq!(local, (None, None));
        assert_eq!(fetch(None, None), (None, None));
    }

    #[test]
    fn a_tag_goes_before_a_digest_and_an_id_never() {
        let id = Digest::sha256(b"config").to_string();
        let digested = format!("docker.io/library/a@{id}");
        let all = [image(&id), image(&digested), image("docker.io/library/b:1")];
        assert_eq!(
            best_reference(&all).as_deref(),
            Some("docker.io/library/b:1")
        );
        assert_eq!(best_reference(&all[..2]), Some(digested));
        assert_eq!(best_reference(&all[..1]), None);
    }
}
