// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The start of a pod whose images are ready, directly and through `resnap serve`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::image::{Built, hello, pause};

use crate::setup::Setup;
use crate::table::{Row, Table};

const ROUNDS: usize = 60;

/// The first pods, which are not counted: connections and caches are new.
const WARM_UP: usize = 5;

/// The steps of which the times are shown.
const STEPS: [&str; 3] = ["RunPodSandbox", "ImageStatus, CreateContainer", "all"];

/// A way to the same containerd.
struct Way {
    name: String,
    cri: Cri,
    samples: [Vec<Duration>; STEPS.len()],
}

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let (image, pause) = (hello()?, pause()?);
    for image in [&image, &pause] {
        setup.import("k8s.io", image)?;
    }
    let served = setup.serve_all()?;
    let logs = setup.containerd.scratch();
    let mut ways = vec![Way::new(
        "direct".to_owned(),
        Cri::connect(setup.containerd.socket(), &logs)?,
    )];
    for (name, served) in &served {
        ways.push(Way::new(name.clone(), Cri::connect(&served.socket, &logs)?));
    }
    for round in 0..WARM_UP + ROUNDS {
        for way in &mut ways {
            way.start_pod(setup, round, &image)?;
        }
    }
    Ok(Table {
        name: "pods",
        about: format!(
            "{ROUNDS} pods, one after the other, by kubelet's calls up to the answer of StartContainer, on {}\n\
             with images that are ready there, in turns. The ratio is to the direct ones.",
            setup.lazy()
        ),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows: rows(&ways),
    })
}

impl Way {
    fn new(name: String, cri: Cri) -> Self {
        Self {
            name,
            cri,
            samples: Default::default(),
        }
    }

    fn start_pod(&mut self, setup: &Setup, round: usize, image: &Built) -> Result<()> {
        let handler = if setup.containerd.has_erofs() {
            "erofs"
        } else {
            ""
        };
        let name = format!("{}-{round}", self.name.replace(' ', "-"));
        let start = Instant::now();
        let sandbox = self.cri.run_pod_sandbox(handler, &name)?;
        let made = start.elapsed();
        let times = self.start_container(&sandbox, image);
        let removed = self.cri.remove_pod_sandbox(&sandbox);
        let (created, started) = times?;
        removed?;
        if round >= WARM_UP {
            for (samples, time) in self.samples.iter_mut().zip([made, created, made + started]) {
                samples.push(time);
            }
        }
        Ok(())
    }

    /// Returns the times until the container was created and until it was started.
    fn start_container(&self, sandbox: &Sandbox, image: &Built) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        let status = self.cri.image_status(&image.reference, Some(sandbox))?;
        let id = status.context("the image does not exist")?;
        let container = self.cri.create_container(sandbox, "hello", &id, &[])?;
        let created = start.elapsed();
        self.cri.start_container(&container)?;
        Ok((created, start.elapsed()))
    }
}

fn rows(ways: &[Way]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, step) in STEPS.iter().enumerate() {
        let of = |way: &Way| Row::timed(format!("{step}: {}", way.name), &way.samples[number]);
        let mut ways = ways.iter().map(of);
        let Some(direct) = ways.next() else {
            continue;
        };
        let proxied: Vec<Row> = ways.map(|row| row.against(&direct)).collect();
        rows.push(direct);
        rows.extend(proxied);
    }
    rows
}
