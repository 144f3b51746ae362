// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The lease store.

use std::time::SystemTime;

use async_trait::async_trait;
use resnap_core::{Labels, LeaseId, LeaseInfo, Leases, Resource, Result, Scope};

use crate::fault::Fault;
use crate::garbage::collect;
use crate::local::Local;
use crate::resource;
use crate::state::is_own;
use crate::store::{check_labels, labels_text, nanoseconds, parse_labels, time};

#[async_trait]
impl Leases for Local {
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()> {
        let (id, labels) = (lease.clone(), labels.clone());
        let work = move |transaction: &rusqlite::Transaction<'_>| {
            check_labels(&labels)?;
            let created = nanoseconds(SystemTime::now());
            let inserted = transaction.execute(
                "INSERT OR IGNORE INTO leases VALUES (?1, ?2, ?3)",
                (&*id.0, created, labels_text(&labels)),
            )?;
            match inserted {
                0 => Err(Fault::taken()),
                _ => Ok(()),
            }
        };
        self.call_in(scope, "create lease", &lease.0, |state| {
            state.store.write(work)
        })
        .await
    }

    /// Collects garbage at once, since no daemon does it later.
    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()> {
        let id = lease.clone();
        self.call_in(scope, "delete lease", &lease.0, move |state| {
            state.store.write(|transaction| {
                match transaction.execute("DELETE FROM leases WHERE id = ?1", [&*id.0])? {
                    0 => Err(Fault::missing()),
                    _ => Ok(()),
                }
            })?;
            if let Err(fault) = collect(state, SystemTime::now()) {
                let error = fault.of("collect", "garbage");
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "garbage stays until the next collection");
            }
            Ok(())
        })
        .await
    }

    async fn add_resource(
        &self,
        scope: &Scope,
        lease: &LeaseId,
        resource: &Resource,
    ) -> Result<()> {
        let (id, resource) = (lease.clone(), resource.clone());
        self.call_in(scope, "add to lease", &lease.0, move |state| {
            state
                .store
                .write(|transaction| resource::add(transaction, &id, &resource))
        })
        .await
    }

    async fn list(&self, scope: &Scope, label: Option<&str>) -> Result<Vec<LeaseInfo>> {
        if !is_own(scope) {
            return Ok(Vec::new());
        }
        let wanted = label.map(str::to_owned);
        let mut leases = self
            .call("list", "leases", |state| state.store.read(all))
            .await?;
        leases.retain(|lease| {
            let labels = &lease.labels;
            wanted
                .as_ref()
                .is_none_or(|label| labels.contains_key(label))
        });
        Ok(leases)
    }

    async fn resources(&self, scope: &Scope, lease: &LeaseId) -> Result<Vec<Resource>> {
        let id = lease.clone();
        self.call_in(
            scope,
            "list the resources of lease",
            &lease.0,
            move |state| {
                state.store.read(|transaction| {
                    resource::require(transaction, &id)?;
                    resource::list(transaction, Some(&id))
                })
            },
        )
        .await
    }

    async fn collect_garbage(&self, scope: &Scope) -> Result<()> {
        self.call_in(scope, "collect", "garbage", |state| {
            collect(state, SystemTime::now())
        })
        .await
    }
}

fn all(transaction: &rusqlite::Transaction<'_>) -> Result<Vec<LeaseInfo>, Fault> {
    let mut statement = transaction.prepare("SELECT id, created, labels FROM leases")?;
    let mut rows = statement.query([])?;
    let mut leases = Vec::new();
    while let Some(row) = rows.next()? {
        leases.push(LeaseInfo {
            id: LeaseId(row.get::<_, String>(0)?.into()),
            created: time(row.get(1)?),
            labels: parse_labels(&row.get::<_, String>(2)?)?,
        });
    }
    Ok(leases)
}
