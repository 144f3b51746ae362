// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap check`.

use anyhow::Result;
use resnap_core::Proof;
use resnap_core::labels::NEEDED;
use resnap_unpacker::{Check, LabelState, LayerState, Request};

use super::executor::Executor;
use crate::args::CheckArguments;
use crate::config::Config;
use crate::diff_plugin;
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes, short};

pub(crate) async fn run(
    executor: &Executor,
    config: &Config,
    arguments: CheckArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    diff_plugin::warn(config).await;
    let mut checks = Vec::new();
    for image in arguments.images {
        let mut request = Request::new(image);
        request.snapshotter.clone_from(&arguments.snapshotter);
        request.platform.clone_from(&arguments.platform);
        checks.push(executor.check(&request).await?);
    }
    output.documents(&checks, show)?;
    let ready = checks
        .iter()
        .all(|check| check.snapshotters.values().all(|verdict| verdict.ready));
    Ok(if ready || arguments.snapshotter.is_none() {
        ExitStatus::Done
    } else {
        ExitStatus::Negative
    })
}

fn show(check: &Check, table: &mut Table) {
    table.line(format!("image:     {}", check.image));
    table.line(format!(
        "reference: {}",
        check
            .reference
            .as_deref()
            .unwrap_or("none, only the ID is known")
    ));
    table.line(format!("platform:  {}", check.platform));
    table.line(format!("manifest:  {}", check.manifest));
    table.line(format!("config:    {}", check.config));
    table.header([
        "LAYER",
        "DIGEST",
        "SIZE",
        "BLOB",
        "CHAIN ID",
        "SNAPSHOTTER",
        "STATE",
        "LABELS",
    ]);
    for (index, layer) in check.layers.iter().enumerate() {
        for (name, state) in &layer.snapshots {
            let (state, labels) = describe(state, table);
            table.row([
                (index + 1).to_string(),
                short(layer.digest.as_str()),
                bytes(layer.bytes),
                if layer.blob { "present" } else { "missing" }.to_owned(),
                short(layer.chain_id.as_str()),
                name.clone(),
                state.to_owned(),
                labels,
            ]);
        }
    }
    for (name, verdict) in &check.snapshotters {
        let needs = match &verdict.needs_labels {
            Some(why) => format!(" (needs labels: {why})"),
            None => String::new(),
        };
        let ready = if verdict.ready { "ready" } else { "not ready" };
        table.line(format!("{name}: {ready}{needs}"));
    }
    for warning in &check.warnings {
        table.line(format!("warning: {warning}"));
    }
}

fn describe(state: &LayerState, table: &Table) -> (&'static str, String) {
    match state {
        LayerState::Missing => ("missing", "-".to_owned()),
        LayerState::Unknown { reason } => ("unknown", table.cut(reason, 72)),
        LayerState::Committed {
            labels,
            copied_from,
            proof,
            unproven,
        } => {
            let mut text = labels_text(labels);
            if let Some(snapshotter) = copied_from {
                text += &format!("; copied from {snapshotter}");
            }
            if let Some(proof) = proof {
                text += &format!("; {}", proof_text(proof));
            }
            if let Some(why) = unproven {
                text += &format!("; not proven: {why}");
            }
            ("committed", text)
        }
    }
}

fn proof_text(proof: &Proof) -> String {
    let root = proof.root_hash.get(..12).unwrap_or(&proof.root_hash);
    let tree = format!("dm-verity {root} ({})", proof.origin);
    match &proof.signature {
        Some(signature) => format!("{tree}, signed by {}", signature.signer),
        None => tree,
    }
}

fn labels_text(labels: &LabelState) -> String {
    match labels {
        LabelState::Complete(reference) => format!("complete, of {reference}"),
        LabelState::Missing(missing) if missing.len() == NEEDED.len() => "none".to_owned(),
        LabelState::Missing(missing) => {
            let names = missing
                .iter()
                .map(|label| label.rsplit('/').next().unwrap_or(label));
            format!("missing: {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}
