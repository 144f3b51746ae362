// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are named by where they are, for the local engine.
//!
//! | name | place | name of the record |
//! |---|---|---|
//! | `oci:PATH[:TAG]` | an OCI layout | the same, with an absolute path |
//! | `oci-archive:FILE[:TAG]` | an OCI layout in an archive | the same |
//! | `docker-archive:FILE[:TAG]` | an archive of `docker save` | the same |
//! | `docker://REFERENCE` | a registry | the full reference |
//!
//! A path ends at its first colon.

use std::path::{Path, PathBuf, absolute};

use anyhow::{Context as _, Result, bail};
use resnap_archive::{ArchiveForm, ArchiveSource, ArchivedImage};
use resnap_core::{Image, Labels, PullCredentials};
use resnap_local::Local;
use resnap_unpacker::UnpackError;

use crate::config::Config;
use crate::connect::registry;
use crate::local_step::{not_in_archive, not_in_registry};
use crate::pending_images::PendingImages;

/// The limit on the images of an archive that an error lists.
const MAX_LISTED: usize = 8;

/// The prefix of a reference to a registry.
pub(crate) const REGISTRY: &str = "docker://";

/// An image in an archive or layout.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archived<'a> {
    transport: &'static str,
    pub(crate) form: ArchiveForm,
    pub(crate) path: PathBuf,
    pub(crate) tag: Option<&'a str>,
}

impl<'a> Archived<'a> {
    /// Parses the name of an image; `None` if it names no archive.
    pub(crate) fn parse(name: &'a str) -> Result<Option<Self>> {
        let transports = [
            ("oci", ArchiveForm::Oci),
            ("oci-archive", ArchiveForm::Oci),
            ("docker-archive", ArchiveForm::Docker),
        ];
        let (transport, rest) = name.split_once(':').unwrap_or_default();
        let found = transports.iter().find(|(name, _)| *name == transport);
        let Some((transport, form)) = found else {
            return Ok(None);
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() || tag.is_some_and(str::is_empty) {
            bail!("{name:?} names no image: want {transport}:PATH or {transport}:PATH:TAG");
        }
        Ok(Some(Self {
            transport,
            form: *form,
            path: absolute(Path::new(path))?,
            tag,
        }))
    }

    /// Returns the name of its record.
    fn name(&self) -> String {
        let tag = self.tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{}:{}{tag}", self.transport, self.path.display())
    }

    /// Returns the image among those of the archive.
    pub(crate) fn choose(&self, images: Vec<ArchivedImage>) -> Result<Image> {
        let all = images.len();
        let names = images.iter().flat_map(|image| image.names.iter().cloned());
        let mut listed: Vec<_> = names.take(MAX_LISTED + 1).collect();
        if listed.len() > MAX_LISTED {
            listed.truncate(MAX_LISTED);
            listed.push("…".to_owned());
        }
        let mut found = images;
        if let Some(tag) = self.tag {
            found.retain(|image| image.names.iter().any(|name| name == tag));
        }
        let listed = match listed.is_empty() {
            true => "none has a name".to_owned(),
            false => format!("there are: {}", listed.join(", ")),
        };
        match (self.tag, <[ArchivedImage; 1]>::try_from(found)) {
            (_, Ok([image])) => Ok(Image {
                name: self.name(),
                target: image.target,
                labels: Labels::new(),
            }),
            (_, Err(_)) if all == 0 => bail!("{:?} has no images", self.path),
            (None, Err(_)) => bail!(
                "{:?} has {all} images: name one, as {}:TAG; {listed}",
                self.path,
                self.name()
            ),
            (Some(tag), Err(found)) if found.is_empty() => {
                bail!("{:?} has no image {tag}; {listed}", self.path)
            }
            (Some(tag), Err(_)) => bail!("{:?} has several images {tag}", self.path),
        }
    }
}

/// Finds images that are named by where they are, for the local engine to make ready, gives them the names that their
/// records will have, and makes their places the first sources of content. The store is created for the first.
pub(crate) async fn find(config: &mut Config, names: &mut [String]) -> Result<()> {
    let Some(root) = config.local.clone() else {
        return Ok(());
    };
    let source = ArchiveSource::new(Vec::<PathBuf>::new());
    let mut images = Vec::new();
    for name in names {
        let image = if let Some(archived) = Archived::parse(name)? {
            let listed = source.images(&archived.path, archived.form).await;
            let listed = listed.map_err(|error| not_in_archive(name, &error))?;
            let image = archived.choose(listed)?;
            config.prepend_archives(&[archived.path])?;
            image
        } else if let Some(reference) = name.strip_prefix(REGISTRY) {
            let resolved = registry(config, PullCredentials::new())
                .resolve(reference)
                .await;
            resolved.map_err(|error| not_in_registry(name, &error))?
        } else {
            continue;
        };
        name.clone_from(&image.name);
        images.push(image);
    }
    if !images.is_empty() {
        let store = Local::open(root).await.map_err(UnpackError::from)?;
        let pending = PendingImages::new(store, images).await;
        config.pending = Some(pending.map_err(UnpackError::from)?);
    }
    Ok(())
}

/// Gives images that are named by where they are the names of their records, and makes their places the first
/// sources of content.
pub(crate) fn rename(config: &mut Config, images: &mut [String]) -> Result<()> {
    if config.local.is_none() {
        return Ok(());
    }
    for name in images {
        if let Some(archived) = Archived::parse(name)? {
            let renamed = archived.name();
            if archived.path.try_exists().context(renamed.clone())? {
                config.prepend_archives(&[archived.path])?;
            }
            *name = renamed;
        } else if let Some(reference) = name.strip_prefix(REGISTRY) {
            *name = reference.to_owned();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use resnap_core::{Descriptor, Digest};

    use super::*;

    fn image(names: &[&str]) -> ArchivedImage {
        ArchivedImage {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            target: Descriptor {
                media_type: String::new(),
                digest: Digest::sha256(names.concat().as_bytes()),
                size: 1,
                annotations: Default::default(),
                platform: None,
            },
        }
    }

    #[test]
    fn names_say_where_images_are() {
        for (name, record, form) in [
            ("oci:/a/b", "oci:/a/b", ArchiveForm::Oci),
            ("oci:/a/b:web:1", "oci:/a/b:web:1", ArchiveForm::Oci),
            ("oci-archive:/a.tar", "oci-archive:/a.tar", ArchiveForm::Oci),
            (
                "docker-archive:/a.tar:w:1",
                "docker-archive:/a.tar:w:1",
                ArchiveForm::Docker,
            ),
        ] {
            let archived = Archived::parse(name).unwrap().unwrap();
            assert_eq!((archived.name().as_str(), archived.form), (record, form));
        }
        let relative = Archived::parse("oci:b").unwrap().unwrap().name();
        assert!(
            relative.starts_with("oci:/") && relative.ends_with("/b"),
            "{relative}"
        );
        for name in ["web", "docker.io/web:1", "docker://web", "sha256:abc"] {
            assert_eq!(Archived::parse(name).unwrap(), None, "{name}");
        }
        for name in ["oci:", "oci::1", "oci:/a:"] {
            let error = Archived::parse(name).unwrap_err().to_string();
            assert!(error.contains("want oci:PATH"), "{error}");
        }
    }

    #[test]
    fn an_image_is_chosen_by_its_name_or_as_the_only_one() {
        let choose = |name: &str, images: &[ArchivedImage]| {
            let archived = Archived::parse(name).unwrap().unwrap();
            let chosen = archived.choose(images.to_vec());
            chosen
                .map(|image| image.target.digest)
                .map_err(|error| error.to_string())
        };
        let (one, two) = (image(&["1", "web:1"]), image(&["2"]));
        let both = [one.clone(), two.clone()];
        assert_eq!(choose("oci:/a", &both[..1]), Ok(one.target.digest.clone()));
        assert_eq!(choose("oci:/a:web:1", &both), Ok(one.target.digest));
        assert_eq!(choose("oci:/a:2", &both), Ok(two.target.digest));
        let several = choose("oci:/a", &both).unwrap_err();
        assert!(several.contains("there are: 1, web:1, 2"), "{several}");
        let none = choose("oci:/a:3", &both).unwrap_err();
        assert!(none.contains("no image 3; there are: 1"), "{none}");
    }
}
