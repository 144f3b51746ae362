// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images that are there in several forms, one of them being EROFS.

use anyhow::Result;

use super::archive::cached;
use super::builder::{ImageBuilder, Index, host_platform};
use super::built::Built;
use super::catalog::busybox_payload;
use super::layer::{Compression, Layer};
use super::tar_entry::{self, Entry};

/// The form of a manifest of [`forms`]. All have two layers, the second of which deletes a file of the
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Tars, for this machine.
    Plain,
    /// EROFS images, for this machine.
    Erofs,
    /// Compressed EROFS images, for this machine.
    ErofsZstd,
    /// An EROFS image and a tar on it, for this machine.
    Mixed,
    /// Tars, for another architecture.
    Foreign,
    /// EROFS images, for another architecture.
    ForeignErofs,
}

/// Returns an image in these forms, in this order: an index, or for a single form just its manifest.
/// A container of a form that is for this machine prints its [`Form::name`].
pub fn forms(forms: &[Form]) -> Result<Built> {
    let names: Vec<&str> = forms.iter().map(|form| form.name()).collect();
    let tag = names.join("-");
    let reference = format!("docker.io/library/forms:{tag}");
    cached(&format!("forms-{tag}"), |path| {
        if let [form] = forms {
            return form.image(&reference)?.write(path);
        }
        let mut index = Index::new(&reference);
        for form in forms {
            index = index.image(form.image("")?);
        }
        index.write(path)
    })
}

/// Returns an architecture in Go's words that this machine does not have.
pub fn foreign_architecture() -> &'static str {
    match host_platform().1 {
        "arm64" => "amd64",
        _ => "arm64",
    }
}

impl Form {
    /// Returns a word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Erofs => "erofs",
            Self::ErofsZstd => "zstd",
            Self::Mixed => "mixed",
            Self::Foreign => "foreign",
            Self::ForeignErofs => "foreignerofs",
        }
    }

    fn is_foreign(self) -> bool {
        matches!(self, Self::Foreign | Self::ForeignErofs)
    }

    fn image(self, reference: &str) -> Result<ImageBuilder> {
        let (os, host) = host_platform();
        let architecture = match self.is_foreign() {
            true => foreign_architecture(),
            false => host,
        };
        let [lower, upper] = self.tars()?;
        let erofs = |tar: &[u8]| match self {
            Self::ErofsZstd => Layer::erofs(tar, Compression::Zstd),
            _ => Layer::erofs(tar, Compression::None),
        };
        let layers = match self {
            Self::Plain | Self::Foreign => [&lower, &upper]
                .map(|tar| Layer::new(tar, Compression::Gzip))
                .into_iter()
                .collect::<Result<Vec<_>>>()?,
            Self::Erofs | Self::ErofsZstd | Self::ForeignErofs => {
                vec![erofs(&lower)?, erofs(&upper)?]
            }
            Self::Mixed => vec![erofs(&lower)?, Layer::new(&upper, Compression::Gzip)?],
        };
        let image = ImageBuilder::new(reference)
            .platform(os, architecture)
            .layers(layers)
            .cmd(["/bin/sh", "-c", "test ! -e /etc/gone && cat /etc/message"]);
        Ok(match self {
            Self::Plain | Self::Foreign => image,
            _ => image.os_features(["erofs"]),
        })
    }

    fn tars(self) -> Result<[Vec<u8>; 2]> {
        let gone = Entry::file("etc/gone", "");
        let lower = match self.is_foreign() {
            true => tar_entry::pack(&[Entry::dir("./"), Entry::dir("etc"), gone])?,
            false => busybox_payload([gone])?.tar()?,
        };
        let upper = tar_entry::pack(&[
            Entry::dir("./"),
            Entry::dir("etc"),
            Entry::file("etc/message", format!("{}\n", self.name())),
            Entry::whiteout("etc/gone"),
        ])?;
        Ok([lower, upper])
    }
}
