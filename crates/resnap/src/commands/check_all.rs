// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap check --all`.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use futures::StreamExt as _;
use resnap_unpacker::{Check, Engine, LayerState, Plan, Reader, Request, UnpackError};
use serde::Serialize;

use crate::args::CheckArguments;
use crate::config::Config;
use crate::documents::{IMAGES_AT_ONCE, Overview};
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, or_dash, reason};

/// An image: what `check` says of it, or why it cannot.
#[derive(Serialize)]
#[serde(untagged)]
enum Item {
    Checked(Box<Check>),
    Unknown { image: String, problem: String },
}

impl Item {
    fn image(&self) -> &str {
        match self {
            Self::Checked(check) => &check.image,
            Self::Unknown { image, .. } => image,
        }
    }

    /// Returns whether it is ready on all snapshotters.
    fn is_ready(&self) -> bool {
        match self {
            Self::Checked(check) => check.snapshotters.values().all(|verdict| verdict.ready),
            Self::Unknown { .. } => false,
        }
    }
}

pub(crate) async fn run(
    engine: &Engine,
    config: &Config,
    arguments: CheckArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let only = arguments.snapshotter.as_ref().map(std::slice::from_ref);
    let overview = Overview::read(engine, &config.runtime_dir.value, only).await?;
    let reader = &overview.reader;
    let snapshotters = match &arguments.snapshotter {
        None => reader.working_snapshotters().await?,
        Some(name) => {
            reader.require_snapshotter(name).await?;
            vec![name.clone()]
        }
    };
    let images = overview.images().await?;
    let checked = futures::stream::iter(&images)
        .map(|image| check(reader, image, &arguments, &snapshotters))
        .buffered(IMAGES_AT_ONCE);
    let mut checked: Vec<_> = checked.collect().await;
    overview.keep_documents();
    let ready = checked
        .iter_mut()
        .filter_map(|checked| checked.as_mut().ok());
    let mut ready: Vec<_> = ready
        .map(|(plan, check)| (Arc::clone(plan), check))
        .collect();
    engine.warn_of_unused_proofs(&mut ready).await;
    let items = images.into_iter().zip(checked);
    let items = items.map(|(image, checked)| match checked {
        Ok((_, check)) => Item::Checked(Box::new(check)),
        Err(error) => Item::Unknown {
            problem: reason(&error, &image),
            image,
        },
    });
    let mut items: Vec<Item> = items.collect();
    leave_out_ids(&mut items);
    output.document(&items, |table| show(&items, table))?;
    let ready = items.iter().all(Item::is_ready);
    Ok(if ready || arguments.snapshotter.is_none() {
        ExitStatus::Done
    } else {
        ExitStatus::Negative
    })
}

async fn check(
    reader: &Reader,
    image: &str,
    arguments: &CheckArguments,
    snapshotters: &[String],
) -> Result<(Arc<Plan>, Check), UnpackError> {
    let mut request = Request::new(image);
    request.snapshotter.clone_from(&arguments.snapshotter);
    request.platform.clone_from(&arguments.platform);
    let plan = reader.plan(&request).await?;
    let check = reader.check(&plan, snapshotters).await?;
    Ok((plan, check))
}

/// Leaves out IDs of images that have a name in another form.
fn leave_out_ids(items: &mut Vec<Item>) {
    let named = items.iter().filter_map(|item| match item {
        Item::Checked(check) if check.image != check.config.as_str() => {
            Some(check.config.to_string())
        }
        _ => None,
    });
    let named: BTreeSet<String> = named.collect();
    items.retain(|item| !named.contains(item.image()));
}

fn show(items: &[Item], table: &mut Table) {
    table.header(["IMAGE", "LAYERS", "BLOBS", "READY ON", "NOT READY ON"]);
    for item in items {
        let check = match item {
            Item::Checked(check) => check,
            Item::Unknown { image, problem } => {
                let dash = || or_dash(None);
                let problem = table.cut(problem, 72);
                table.row([image.clone(), dash(), dash(), dash(), problem]);
                continue;
            }
        };
        let verdicts = check.snapshotters.iter();
        let ready = verdicts.clone().filter(|(_, verdict)| verdict.ready);
        let ready: Vec<&str> = ready.map(|(name, _)| name.as_str()).collect();
        let others = verdicts.filter(|(_, verdict)| !verdict.ready);
        let others: Vec<String> = others
            .map(|(name, _)| format!("{name} ({})", lacks(check, name)))
            .collect();
        let blobs = check.layers.iter().filter(|layer| layer.blob).count();
        table.row([
            check.image.clone(),
            check.layers.len().to_string(),
            blobs.to_string(),
            or_dash(Some(ready.join(", "))),
            or_dash(Some(others.join(", "))),
        ]);
    }
    for item in items {
        if let Item::Checked(check) = item {
            for warning in &check.warnings {
                table.line(format!("warning: {}: {warning}", check.image));
            }
        }
    }
}

/// Returns the reason why an image is not ready on a snapshotter.
fn lacks(check: &Check, snapshotter: &str) -> String {
    let states = check.layers.iter();
    let states = states.filter_map(|layer| layer.snapshots.get(snapshotter));
    let mut committed = 0;
    let mut reason = "labels are missing";
    for state in states {
        match state {
            LayerState::Unknown { .. } => return "no answer".to_owned(),
            LayerState::Missing => {}
            LayerState::Committed { unproven, .. } => {
                committed += 1;
                if unproven.is_some() {
                    reason = "a proof is missing";
                }
            }
        }
    }
    match check.layers.len() {
        layers if committed < layers => format!("{committed} of {layers} layers"),
        _ => reason.to_owned(),
    }
}
