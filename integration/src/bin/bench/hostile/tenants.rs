// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A node with a pod for those who harm and one for another tenant.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use resnap_integration::cri::{Cri, Sandbox};
use resnap_integration::daemon::Options;
use resnap_integration::image::{Built, Entry, ImageBuilder, Layer, pause};
use resnap_integration::tap::{Held, Tap};
use serde_json::Value;

use crate::setup::{Resnap, Served, Setup};

pub(super) const NAMESPACE: &str = "k8s.io";

pub(super) struct Tenants {
    /// With a containerd for this alone.
    pub(super) setup: Setup,
    resnap: Resnap,
    pub(super) served: Served,
    /// The directory of `resnap serve`.
    dir: PathBuf,
    /// Through which it calls containerd where containerd writes the layers.
    pub(super) tap: Option<Tap>,
    pub(super) hostile: Sandbox,
    pub(super) tenant: Sandbox,
    /// The tenant's image.
    pub(super) small: Built,
}

/// The parts of a running case.
#[derive(Default)]
pub(super) struct Harm {
    /// A call that is held to the end of the case.
    pub(super) held: Option<Held>,
    pub(super) clients: Vec<JoinHandle<()>>,
}

impl Harm {
    /// Returns whether all requests are done, or all others wait.
    pub(super) fn is_over(&self, tenants: &Tenants) -> Result<bool> {
        let asks = || self.clients.iter().any(|client| !client.is_finished());
        Ok(self.held.is_some() || (!asks() && tenants.jobs()?.is_empty()))
    }
}

impl Tenants {
    /// Layers are written by this differ.
    pub(super) fn set(setup: &Setup, resnap: &Resnap, differ: &str) -> Result<Self> {
        let setup = setup.another(Options {
            tmpfs: Some("6g"),
            ..Options::default()
        })?;
        let scratch = setup.containerd.scratch();
        let small = small(&scratch)?;
        for image in [&small, &pause()?] {
            setup.import(NAMESPACE, image)?;
        }
        let tap = match differ {
            "containerd" => Some(setup.containerd.tap()?),
            _ => None,
        };
        let dir = setup.containerd.socket().with_file_name("hostile");
        fs::create_dir(&dir)?;
        let config = ["overlayfs", "erofs"]
            .map(|snapshotter| format!("snapshotters.{snapshotter}.differ = {differ:?}\n"));
        fs::write(dir.join("config.toml"), config.concat())?;
        let mut serve = client(&setup, resnap, tap.as_ref(), &dir);
        // It warns of each hostile image.
        serve.arg("serve").stderr(Stdio::null());
        let served = Served::begin(&mut serve, dir.join("cri.sock"))?;
        let cri = Cri::connect(&served.socket, &scratch)?;
        Ok(Self {
            hostile: cri.run_pod_sandbox("erofs", "hostile")?,
            tenant: cri.run_pod_sandbox("erofs", "tenant")?,
            resnap: resnap.clone(),
            setup,
            served,
            dir,
            tap,
            small,
        })
    }

    /// `resnap` as a client of `resnap serve`.
    pub(super) fn resnap(&self) -> Command {
        client(&self.setup, &self.resnap, self.tap.as_ref(), &self.dir)
    }

    /// Returns a client of `resnap serve` for the CRI.
    pub(super) fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.served.socket, &self.setup.containerd.scratch())
    }

    /// Returns a path for an image's archive.
    pub(super) fn archive(&self, name: &str) -> PathBuf {
        self.setup.containerd.scratch().join(format!("{name}.tar"))
    }

    /// Returns the images that are being unpacked.
    pub(super) fn jobs(&self) -> Result<Vec<Value>> {
        let listed = self.resnap().args(["jobs", "--json"]).output()?;
        ensure!(listed.status.success(), "{listed:?}");
        Ok(serde_json::from_slice(&listed.stdout)?)
    }

    pub(super) fn end(self, harm: Harm) -> Result<()> {
        // Those that wait for it are answered then.
        drop(self.served);
        drop(harm.held);
        for client in harm.clients {
            // One that failed is told of by what was measured.
            let _ = client.join();
        }
        drop(self.tap);
        self.setup.stop()
    }
}

fn client(setup: &Setup, resnap: &Resnap, tap: Option<&Tap>, dir: &Path) -> Command {
    let address = tap.map_or(setup.containerd.socket(), Tap::socket);
    let mut command = resnap.on(address);
    command
        .env("RESNAP_RUNTIME_DIR", dir)
        .env("RESNAP_CONFIG", dir.join("config.toml"))
        .args(["--namespace", NAMESPACE]);
    command
}

fn small(dir: &Path) -> Result<Built> {
    let motd = Entry::file("etc/motd", "x".repeat(2000));
    let layer = Layer::of(&[Entry::dir("./"), Entry::dir("etc"), motd])?;
    ImageBuilder::new("docker.io/library/small:1")
        .layer(layer)
        .cmd(["/bin/true"])
        .write(&dir.join("small.tar"))
}
