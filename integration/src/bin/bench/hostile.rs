// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The cost of one tenant's images for the node and for the other tenants.

mod cases;
mod neighbours;
mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::bed::Bed;
use crate::table::{Row, Table};
use cases::{CASES, Case};
use neighbours::{Client, container};
use scene::Scene;

/// Every case ends by then.
const LIMIT: Duration = Duration::from_secs(60);

/// The other client's calls are counted for as long at least.
const LEAST: Duration = Duration::from_secs(5);

/// The interval of polling.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn run(bed: &Bed) -> Result<Table> {
    ensure!(
        bed.containerd.has_erofs(),
        "the pods of `hostile` are on erofs, which {} does not have",
        bed.containerd.name()
    );
    let mut rows = Vec::new();
    for case in CASES {
        for resnap in bed.resnaps() {
            let name = resnap.row(case.name);
            let row = Scene::set(bed, resnap, case.differ)
                .and_then(|scene| play(scene, case, name.clone()))
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
        containerd: bed.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

fn play(scene: Scene, case: &Case, name: String) -> Result<Row> {
    let begin = (case.prepare)(&scene)?;
    let client = Client::start(&scene.served.socket)?;
    let (cpu, started) = (scene.served.cpu()?, Instant::now());
    let harm = begin(&scene)?;
    let tenant = std::thread::spawn({
        let (socket, sandbox) = (scene.served.socket.clone(), scene.tenant.clone());
        let (logs, image) = (scene.bed.containerd.scratch(), scene.small.clone());
        let limit = LIMIT.saturating_sub(started.elapsed());
        move || container(&socket, &logs, &sandbox, &image, limit)
    });
    while started.elapsed() < LIMIT {
        let is_over = tenant.is_finished() && harm.is_over(&scene)?;
        if is_over && started.elapsed() > LEAST {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let (cpu, peak_kib) = (scene.served.cpu()? - cpu, scene.served.memory("VmHWM")?);
    let samples = client.end()?;
    let tenant = tenant
        .join()
        .map_err(|_| anyhow!("the tenant panicked"))??;
    scene.end(harm)?;
    Ok(Row {
        cpu_seconds: Some(cpu),
        peak_kib: Some(peak_kib),
        tenant: Some(tenant),
        // It is asked for.
        per_second: None,
        ..Row::calls(name, &samples, 0.0)
    })
}
