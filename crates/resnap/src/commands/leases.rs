// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap leases`.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use resnap_unpacker::{Engine, LeaseStatus, Owner};

use crate::args::LeasesArguments;
use crate::exit_status::ExitStatus;
use crate::output::{Output, or_dash};

pub(crate) async fn run(
    engine: &Engine,
    arguments: LeasesArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    let leases = if arguments.sweep {
        engine.sweep().await?
    } else {
        engine.leases().await?
    };
    output.document(&leases, |table| {
        table.header(["LEASE", "IMAGE", "SNAPSHOTTER", "OWNER", "AGE", "EXPIRES"]);
        for lease in &leases {
            table.row([
                lease.lease.clone(),
                or_dash(lease.image.clone()),
                or_dash(lease.snapshotter.clone()),
                owner(lease),
                age(lease.created),
                or_dash(lease.expires.clone()),
            ]);
        }
    })?;
    if arguments.sweep && !output.is_json() {
        let count = leases.len();
        let plural = if count == 1 { "" } else { "s" };
        output.line(&format!("{count} orphaned lease{plural} deleted"))?;
    }
    Ok(ExitStatus::Done)
}

fn owner(lease: &LeaseStatus) -> String {
    match &lease.owner {
        Owner::Alive(process) => format!("alive: {process}"),
        Owner::Orphaned => "dead".to_owned(),
        _ => "unknown: in another runtime directory".to_owned(),
    }
}

fn age(created: SystemTime) -> String {
    // The clock may have been set back.
    let age = created.elapsed().unwrap_or_default();
    humantime::format_duration(Duration::from_secs(age.as_secs())).to_string()
}
