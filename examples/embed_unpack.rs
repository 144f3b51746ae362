// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A CRI shim's CreateContainer: if the snapshotter does not have the image, it is unpacked there, and the
//! container's root file system is prepared again.
//!
//! ```text
//! cargo run -p resnap-examples --bin embed_unpack -- SOCKET NAMESPACE IMAGE SNAPSHOTTER
//! ```

// A program that talks to its user.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use resnap_applier::{ApplierSettings, InProcessApplier};
use resnap_containerd::Client;
use resnap_core::{Error, Labels, LeaseId, Mount, Ports, Scope, SnapshotKey, labels};
use resnap_unpacker::{Engine, EngineSettings, Request};

struct Shim {
    ports: Ports,
    scope: Scope,
    engine: Engine,
    snapshotter: String,
}

impl Shim {
    async fn create_container(&self, id: &str, image: &str) -> Result<Vec<Mount>> {
        let request = Request::new(image).on(&self.snapshotter);
        match self.root_file_system(id, &request).await {
            Err(error) if error.downcast_ref().is_some_and(Error::is_not_found) => {
                println!("{image} is not on {} yet", self.snapshotter);
                let job = self.engine.unpack(request.clone());
                let mut events = job.events();
                while let Some(event) = events.next().await {
                    println!("layer {}/{}: {:?}", event.layer, event.layers, event.phase);
                }
                job.await?;
                self.root_file_system(id, &request).await
            }
            created => created,
        }
    }

    /// Prepares the container's writable snapshot. The lease keeps it from garbage collection until the
    /// container's record does.
    async fn root_file_system(&self, id: &str, request: &Request) -> Result<Vec<Mount>> {
        let plan = self.engine.plan(request).await?;
        let snapshotter = self.ports.snapshotters.snapshotter(&self.snapshotter);
        let (key, labels) = (SnapshotKey::from(id.to_owned()), Labels::new());
        let mounts = snapshotter.prepare(&self.scope, &key, plan.top(), &labels);
        Ok(mounts.await?)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, image, snapshotter] = arguments.as_slice() else {
        bail!("usage: embed_unpack SOCKET NAMESPACE IMAGE SNAPSHOTTER");
    };
    let mut ports = Client::connect(socket).await?.ports();
    // Layers are written in this process where that is possible, else by containerd's differ.
    ports.applier = Arc::new(InProcessApplier::new(&ports, ApplierSettings::default()));
    let scope = Scope::new(namespace);
    let lease = LeaseId(format!("embedded-{}", std::process::id()).into());
    let expiry = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3600));
    let labels = Labels::from([(labels::GC_EXPIRE.to_owned(), expiry.to_string())]);
    ports.leases.create(&scope, &lease, &labels).await?;
    let shim = Shim {
        engine: Engine::new(ports.clone(), namespace, EngineSettings::default())?,
        scope: scope.leased(lease.clone()),
        ports,
        snapshotter: snapshotter.clone(),
    };
    let created = shim.create_container("embedded", image).await;
    let ended = shim.ports.leases.delete(&scope, &lease).await;
    for mount in created.context("create container")? {
        println!("{} on / ({})", mount.source, mount.options.join(","));
    }
    Ok(ended?)
}
