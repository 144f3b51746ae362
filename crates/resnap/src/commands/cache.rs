// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap cache`.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resnap_core::{DiffId, Digest};
use resnap_platforms::Platform;
use resnap_publish::{CacheDir, CacheEntry, CacheOutcome, CachedLayer, build_cache};

use super::signals::until_stopped;
use crate::cache_use::require_unused;
use crate::config::Config;
use crate::exit_status::ExitStatus;
use crate::layer_bar::shown;
use crate::output::{Output, bytes};
use crate::publish_args::{CacheBuildArguments, CacheCommand, CachePruneArguments};
use crate::publish_step::failure;
use crate::source_image::source_image;

pub(crate) async fn run(
    config: &Config,
    command: CacheCommand,
    output: &mut Output,
) -> Result<ExitStatus> {
    match command {
        CacheCommand::Build(arguments) => build(config, arguments, output).await,
        CacheCommand::Prune(arguments) => prune(config, arguments, output).await,
    }
}

async fn build(
    config: &Config,
    arguments: CacheBuildArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let image = source_image(config, &arguments.image).await?;
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    let (verity, dir) = (arguments.verity, &*arguments.dir);
    let built = shown(|bar| build_cache(&image, &platform, verity, dir, bar));
    let built = until_stopped(built).await?;
    let Some(built) = built else {
        return Ok(ExitStatus::Cancelled);
    };
    let built = built.map_err(failure)?;
    output.document(&built, |table| {
        table.header(["DIFF ID", "OUTCOME"]);
        for layer in &built {
            table.row([layer.diff_id.0.to_string(), outcome(layer)]);
        }
    })?;
    Ok(ExitStatus::Done)
}

fn outcome(layer: &CachedLayer) -> String {
    match &layer.outcome {
        CacheOutcome::Existed => "there already".to_owned(),
        CacheOutcome::Written { size } => format!("written, {}", bytes(*size)),
        CacheOutcome::Native => "left out: it is an EROFS image itself".to_owned(),
        CacheOutcome::NeedsParents { directory, cached } => match cached {
            false => format!("left out: {directory} is that of the layers below"),
            true => format!(
                "there, made for an image that has it at the bottom; wrong for this one: {directory} is that of the layers below; remove {}",
                layer.path.display()
            ),
        },
    }
}

async fn prune(
    config: &Config,
    arguments: CachePruneArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let keep = read_list(&arguments.keep)?;
    if keep.is_empty() && arguments.remove {
        bail!(
            "--keep {:?} has no diff IDs, and all would be removed: remove the directory instead",
            arguments.keep
        );
    }
    let dir = arguments
        .dir
        .canonicalize()
        .with_context(|| format!("{:?}", arguments.dir))?;
    let cache = CacheDir::new(&dir).map_err(failure)?;
    let others = cache.others(&keep).map_err(failure)?;
    require_unused(config, &dir, &others).await?;
    if arguments.remove {
        cache.remove(&others).map_err(failure)?;
    }
    show(&others, arguments.remove, output)?;
    Ok(ExitStatus::Done)
}

fn show(entries: &[CacheEntry], is_removed: bool, output: &mut Output) -> Result<()> {
    let total = entries.iter().map(|entry| entry.size).sum();
    output.document(&entries, |table| {
        table.header(["DIFF ID", "SIZE"]);
        for entry in entries {
            table.row([entry.diff_id.0.to_string(), bytes(entry.size)]);
        }
        let count = entries.len();
        table.line(match is_removed {
            true => format!("{count} removed, {}", bytes(total)),
            false => format!(
                "{count} would be removed, {}: --remove does it",
                bytes(total)
            ),
        });
    })
}

/// Reads the diff IDs to keep.
fn read_list(path: &Path) -> Result<HashSet<DiffId>> {
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.with_context(|| format!("--keep {path:?}"))?;
    let mut keep = HashSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.parse::<Digest>() {
            Ok(digest) => _ = keep.insert(DiffId(digest)),
            Err(error) => bail!("--keep {path:?}, line {number}: {error}"),
        }
    }
    Ok(keep)
}
