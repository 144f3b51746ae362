// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Many containers of an image that is not ready, created at once through `resnap serve`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::image::{Built, pause, web};

use crate::setup::{Served, Setup, time};
use crate::table::{Row, Table};

const NAMESPACE: &str = "k8s.io";
const ROUNDS: usize = 5;
const MANY: usize = 32;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let image = web()?;
    setup.import(NAMESPACE, &pause()?)?;
    let served = setup.serve()?;
    let cri = Cri::connect(&served.socket, &setup.containerd.scratch())?;
    let handler = if setup.containerd.has_erofs() {
        "erofs"
    } else {
        ""
    };
    let (mut one, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let alone = unpack(setup, &image, &format!("herd-{round}"))?;
        setup.import(NAMESPACE, &image)?;
        // The CRI hears of it by an event.
        std::thread::sleep(Duration::from_secs(1));
        let sandbox = cri.run_pod_sandbox(handler, &format!("herd-{round}"))?;
        ensure!(!setup.is_ready(NAMESPACE, &image)?, "it is ready already");
        let first = create(setup, &served, &sandbox, &image, "cold")?;
        let second = create(setup, &served, &sandbox, &image, "warm")?;
        cri.remove_pod_sandbox(&sandbox)?;
        // The CRI has a name of its own for it.
        setup.ctr(NAMESPACE, &["images", "rm", &image.config])?;
        setup.remove(NAMESPACE, &image)?;
        // The first round only warms up.
        if round > 0 {
            one.push(alone);
            cold.push(first);
            warm.push(second);
        }
    }
    let added: Vec<Duration> = cold
        .iter()
        .zip(&warm)
        .map(|(a, b)| a.saturating_sub(*b))
        .collect();
    let one = Row::timed("one `resnap unpack`", &one);
    let added =
        Row::timed(format!("{MANY} creates: what cold ones take more"), &added).against(&one);
    drop(cri);
    Ok(Table {
        name: "herd",
        about: format!(
            "{MANY} clients at once create a container each of one image of {} layers through\n\
             `resnap serve`, on {}, until the last is answered.",
            image.layers.len(),
            setup.lazy()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows: vec![
            Row::timed(format!("{MANY} creates: cold"), &cold),
            Row::timed(format!("{MANY} creates: warm"), &warm),
            one,
            added,
        ],
    })
}

/// The same in a namespace of its own.
fn unpack(setup: &Setup, image: &Built, namespace: &str) -> Result<Duration> {
    setup.import(namespace, image)?;
    let socket = setup.containerd.socket();
    let taken = time(&mut setup.unpack(socket, namespace, setup.lazy(), image))?;
    setup.remove(namespace, image)?;
    Ok(taken)
}

fn create(
    setup: &Setup,
    served: &Served,
    sandbox: &Sandbox,
    image: &Built,
    stem: &str,
) -> Result<Duration> {
    let connect = |_| Cri::connect(&served.socket, &setup.containerd.scratch());
    let clients: Vec<Cri> = (0..MANY).map(connect).collect::<Result<_>>()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let create = |(number, client): (usize, Cri)| {
            let name = format!("{stem}-{number}");
            scope.spawn(move || client.create_container(sandbox, &name, &image.reference, &[]))
        };
        let all: Vec<_> = clients.into_iter().enumerate().map(create).collect();
        for one in all {
            let created = one.join().map_err(|_| anyhow!("a client panicked"))?;
            created.context("one was not created")?;
        }
        Ok(start.elapsed())
    })
}
