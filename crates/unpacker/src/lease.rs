// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The lease under which a job works.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime};

use resnap_core::{ChainId, Digest, Labels, LeaseId, Ports, Resource, Result, Scope, labels};

/// A lease ends by itself after this time, whatever happens to the job.
const LIFETIME: Duration = Duration::from_secs(3600);

/// On our leases: the image, for whoever looks at them.
const IMAGE_LABEL: &str = "resnap.io/image";

/// A lease that exists, and the scope of calls under it.
#[derive(Debug)]
pub(crate) struct Lease {
    id: LeaseId,
    pub(crate) scope: Scope,
}

impl Lease {
    /// Makes a lease for the image at `target`, and puts the target on it.
    pub(crate) async fn create(
        ports: &Ports,
        scope: &Scope,
        image: &str,
        target: &Digest,
    ) -> Result<Self> {
        let id = LeaseId(format!("resnap-{}", unique()).into());
        let expiry = humantime::format_rfc3339_seconds(SystemTime::now() + LIFETIME).to_string();
        // A long name may not fit into a label, and is only told.
        let image = image.chars().take(1024).collect();
        let labels = Labels::from([
            (labels::GC_EXPIRE.to_owned(), expiry),
            (IMAGE_LABEL.to_owned(), image),
        ]);
        ports.leases.create(scope, &id, &labels).await?;
        let lease = Self {
            scope: scope.leased(id.clone()),
            id,
        };
        ports
            .leases
            .add_resource(&lease.scope, &lease.id, Resource::Content(target))
            .await?;
        Ok(lease)
    }

    /// Adds a snapshot that somebody else made. It may have been collected before: look again.
    pub(crate) async fn add(
        &self,
        ports: &Ports,
        snapshotter: &str,
        chain_id: &ChainId,
    ) -> Result<()> {
        let resource = Resource::Snapshot {
            snapshotter,
            chain_id,
        };
        ports
            .leases
            .add_resource(&self.scope, &self.id, resource)
            .await
    }

    /// Ends the lease; one that has ended already is fine.
    pub(crate) async fn delete(self, ports: &Ports) -> Result<()> {
        match ports.leases.delete(&self.scope, &self.id).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// A name nobody else has: 64 random bits, as the standard library seeds its hash maps.
pub(crate) fn unique() -> String {
    format!("{:016x}", RandomState::new().hash_one(SystemTime::now()))
}
