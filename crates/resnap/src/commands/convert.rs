// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap convert`.

use std::path::Path;

use anyhow::{Result, bail};
use resnap_platforms::Platform;
use resnap_publish::{
    ConvertedFiles, FileForm, NativeForm, NativeImage, SourceImage, convert_to_files,
    convert_to_native,
};

use super::signals::until_stopped;
use crate::config::Config;
use crate::destination::{self, LATEST};
use crate::exit_status::ExitStatus;
use crate::layer_bar::shown;
use crate::output::{Output, bytes};
use crate::publish_args::ConvertArguments;
use crate::publish_step::failure;
use crate::source_image::source_image;
use crate::version::MajorMinor;

/// The oldest containerd that is to use an image, if none is named: the first with EROFS layers.
const OLDEST: MajorMinor = MajorMinor(2, 1);

pub(crate) async fn run(
    config: &Config,
    arguments: ConvertArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    if destination::is_named(&arguments.destination) {
        require_readers(&arguments)?;
        let image = source_image(config, &arguments.image).await?;
        return to_native(config, &image, arguments, output).await;
    }
    destination::require_path(&arguments.destination)?;
    if arguments.format.is_some() || arguments.oldest_containerd.is_some() {
        bail!(
            "--format and --oldest-containerd are of native layers, and {} gets files",
            arguments.destination
        );
    }
    let image = source_image(config, &arguments.image).await?;
    to_files(&image, arguments, output).await
}

async fn to_files(
    image: &SourceImage,
    arguments: ConvertArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let platform = match &*arguments.platforms {
        [] => Platform::host(),
        [platform] => platform.clone(),
        _ => bail!("files are of one platform, and --platform was given several times"),
    };
    let mut form = FileForm::default();
    (form.merge, form.verity) = (arguments.merge, arguments.verity);
    let to = Path::new(&arguments.destination);
    let converted = shown(|bar| convert_to_files(image, &platform, form, to, bar));
    let converted = until_stopped(converted).await?;
    let Some(converted) = converted else {
        return Ok(ExitStatus::Cancelled);
    };
    show_files(&converted.map_err(failure)?, output)?;
    Ok(ExitStatus::Done)
}

fn show_files(converted: &ConvertedFiles, output: &mut Output) -> Result<()> {
    output.document(converted, |table| {
        table.header(["FILE", "SIZE", "LAYERS", "ROOT HASH"]);
        for file in &converted.files {
            let root_hash = file.verity.as_ref().map(|tree| tree.root_hash.clone());
            table.row([
                file.path.display().to_string(),
                bytes(file.size),
                file.layers.len().to_string(),
                root_hash.unwrap_or_default(),
            ]);
        }
        for tree in converted
            .files
            .iter()
            .filter_map(|file| file.verity.as_ref())
        {
            table.line(format!("dm table: {}", tree.table));
        }
    })
}

/// Checks that each containerd that is to use the image can take its layers, or none of another format.
fn require_readers(arguments: &ConvertArguments) -> Result<()> {
    if arguments.merge {
        bail!(
            "--merge writes one file, and {} is an image",
            arguments.destination
        );
    }
    let format = arguments.format.unwrap_or_default();
    let oldest = arguments.oldest_containerd.unwrap_or(OLDEST);
    let since = format
        .oldest_containerd()
        .map(|(major, minor)| MajorMinor(major, minor));
    if let Some(since) = since.filter(|since| oldest < *since) {
        bail!(
            "containerd {oldest} takes {format} layers for images, and mounts of them fail; {since} is the first that reads them: say --oldest-containerd {since}, or take another --format"
        );
    }
    Ok(())
}

async fn to_native(
    config: &Config,
    image: &SourceImage,
    arguments: ConvertArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let mut form = NativeForm::default();
    (form.format, form.verity) = (arguments.format.unwrap_or_default(), arguments.verity);
    let platforms = match arguments.platforms.is_empty() {
        true => vec![Platform::host()],
        false => arguments.platforms,
    };
    // What the image does not have is said before anything is made.
    image.choose_all(&platforms).await.map_err(failure)?;
    let to = destination::open(config, &arguments.destination).await?;
    let tag = to.tag.as_deref().unwrap_or(LATEST);
    let to = &*to.destination;
    let converted = shown(|bar| convert_to_native(image, &platforms, &form, to, tag, bar));
    let converted = until_stopped(converted).await?;
    let Some(converted) = converted else {
        return Ok(ExitStatus::Cancelled);
    };
    show_native(
        &converted.map_err(failure)?,
        &arguments.destination,
        &form,
        output,
    )?;
    Ok(ExitStatus::Done)
}

fn show_native(
    converted: &NativeImage,
    destination: &str,
    form: &NativeForm,
    output: &mut Output,
) -> Result<()> {
    output.document(converted, |table| {
        table.line(format!(
            "{destination} is now {}, and was made of {}",
            converted.index, converted.source
        ));
        table.header([
            "PLATFORM",
            "MANIFEST",
            "LAYERS",
            "PLAIN MANIFEST, UNCHANGED",
        ]);
        for manifest in &converted.manifests {
            table.row([
                manifest.platform.to_string(),
                manifest.digest.to_string(),
                bytes(manifest.size),
                manifest.plain.to_string(),
            ]);
        }
        if !converted.left_out.is_empty() {
            let platforms = converted.left_out.join(", ");
            table.line(format!(
                "left out, as {} has no content of them: {platforms}",
                converted.source
            ));
        }
        if form.format.oldest_containerd().is_none() {
            table.line(format!(
                "no release of containerd reads {} layers",
                form.format
            ));
        }
    })
}
