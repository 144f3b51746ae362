// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The cost of one tenant's images for the node and for the other tenants.

mod cases;
mod neighbours;
mod tenants;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::setup::Setup;
use crate::table::{Row, Table};
use cases::{CASES, Case};
use neighbours::{Client, container};
use tenants::Tenants;

/// Every case ends by then.
const LIMIT: Duration = Duration::from_secs(60);

/// The other client's calls are counted for as long at least.
const LEAST: Duration = Duration::from_secs(5);

/// The interval of polling.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    ensure!(
        setup.containerd.has_erofs(),
        "the pods of `hostile` are on erofs, which {} does not have",
        setup.containerd.name()
    );
    let mut rows = Vec::new();
    for case in CASES {
        for resnap in setup.resnaps() {
            let name = resnap.row(case.name);
            let row = Tenants::set(setup, resnap, case.differ)
                .and_then(|tenants| play(tenants, case, name.clone()))
                .with_context(|| name.clone())?;
            // It takes minutes.
            println!("{name}: done");
            rows.push(row);
        }
    }
    Ok(Table {
        name: "hostile",
        about: format!(
            "what `resnap serve` takes for hostile images until it has done with them, {} s at most,\n\
             and what others notice: a client that calls Version a hundred times a second (median, min\n\
             and p99), and a tenant who meanwhile has a container created of a 2 kB image on erofs.",
            LIMIT.as_secs()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn play(tenants: Tenants, case: &Case, name: String) -> Result<Row> {
    let begin = (case.prepare)(&tenants)?;
    let client = Client::start(&tenants.served.socket)?;
    let (cpu, started) = (tenants.served.cpu()?, Instant::now());
    let harm = begin(&tenants)?;
    let tenant = std::thread::spawn({
        let (socket, sandbox) = (tenants.served.socket.clone(), tenants.tenant.clone());
        let (logs, image) = (tenants.setup.containerd.scratch(), tenants.small.clone());
        let limit = LIMIT.saturating_sub(started.elapsed());
        move || container(&socket, &logs, &sandbox, &image, limit)
    });
    while started.elapsed() < LIMIT {
        let is_over = tenant.is_finished() && harm.is_over(&tenants)?;
        if is_over && started.elapsed() > LEAST {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let (cpu, peak_kib) = (tenants.served.cpu()? - cpu, tenants.served.memory("VmHWM")?);
    let samples = client.end()?;
    let tenant = tenant
        .join()
        .map_err(|_| anyhow!("the tenant panicked"))??;
    tenants.end(harm)?;
    Ok(Row {
        cpu_seconds: Some(cpu),
        peak_kib: Some(peak_kib),
        tenant: Some(tenant),
        // It is asked for.
        per_second: None,
        ..Row::calls(name, &samples, 0.0)
    })
}
