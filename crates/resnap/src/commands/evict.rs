// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap evict`.

use anyhow::Result;
use resnap_unpacker::{EvictState, EvictedChain, Eviction};
use serde::Serialize;

use crate::args::EvictArguments;
use crate::config::Config;
use crate::connect::{evict_request, working_engine};
use crate::exit_status::ExitStatus;
use crate::output::{Output, Table, bytes, or_dash};
use crate::warm::rank;

#[derive(Serialize)]
struct Document<'a> {
    snapshotter: &'a str,
    dry_run: bool,
    #[serde(flatten)]
    eviction: &'a Eviction,
    warning: &'a Option<String>,
}

pub(crate) async fn run(
    config: &Config,
    arguments: EvictArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let EvictArguments {
        images,
        snapshotter,
        dry_run,
    } = arguments;
    let (mut request, warning) = evict_request(config, images, &snapshotter).await?;
    request.dry_run = dry_run;
    let eviction = working_engine(config).await?.evict(&request).await?;
    let document = Document {
        snapshotter: &snapshotter,
        dry_run,
        eviction: &eviction,
        warning: &warning,
    };
    output.document(&document, |table| {
        show(&eviction, &snapshotter, dry_run, table);
        show_warning(warning.as_deref(), table);
    })?;
    let mut chains = eviction.chains.iter();
    Ok(match chains.any(|chain| chain.refusal.is_some()) {
        true => ExitStatus::Failed,
        false => ExitStatus::Done,
    })
}

/// Shows an eviction as a table.
pub(super) fn show(eviction: &Eviction, snapshotter: &str, dry_run: bool, table: &mut Table) {
    table.header(["IMAGES", "STATE", "FREED", "SNAPSHOTS", "KEPT", "REASON"]);
    for chain in &eviction.chains {
        let why = reason(chain).map(|why| table.cut(&why, 72));
        table.row([
            names(chain),
            word(chain.state).to_owned(),
            bytes(chain.bytes),
            chain.snapshots.to_string(),
            chain.kept.to_string(),
            or_dash(why),
        ]);
    }
    table.line(format!(
        "{} in {} snapshots {} on {snapshotter}",
        bytes(eviction.bytes),
        eviction.snapshots,
        if dry_run { "would be freed" } else { "freed" },
    ));
}

/// Returns the names of the images: those with a tag, if there are any. The CRI gives each image a name
/// with a digest and a bare ID as well.
fn names(chain: &EvictedChain) -> String {
    let names = chain.images.iter();
    let best = names.clone().map(|name| rank(name)).min();
    let names = names.filter(|name| Some(rank(name)) == best);
    let names: Vec<&str> = names.map(String::as_str).collect();
    names.join(", ")
}

pub(super) fn show_warning(warning: Option<&str>, table: &mut Table) {
    if let Some(warning) = warning {
        table.line(format!("warning: {warning}"));
    }
}

/// Returns why a chain, or some of it, stays.
fn reason(chain: &EvictedChain) -> Option<String> {
    match (&chain.refusal, chain.in_use_by.as_slice(), chain.kept) {
        (Some(refusal), ..) => Some(refusal.to_string()),
        (None, [], 0) => None,
        (None, [], _) => Some("kept: layers of other images".to_owned()),
        (None, users, _) => Some(format!("kept: in use by {}", users.join(", "))),
    }
}

fn word(state: EvictState) -> &'static str {
    match state {
        EvictState::Evicted => "evicted",
        EvictState::WouldEvict => "would evict",
        EvictState::Refused => "refused",
        EvictState::Absent => "not there",
        _ => "unknown",
    }
}
