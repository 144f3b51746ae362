// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The lease store.

use std::time::SystemTime;

use async_trait::async_trait;
use resnap_core::{Labels, LeaseId, LeaseInfo, Leases, Resource, Result, Scope};
use rusqlite::Transaction;

use crate::fault::Fault;
use crate::garbage::{collect, collect_leniently};
use crate::lease_rows::{delete, insert};
use crate::local::Local;
use crate::resource;
use crate::state::is_own;
use crate::store::{parse_labels, time};

#[async_trait]
impl Leases for Local {
    async fn create(&self, scope: &Scope, lease: &LeaseId, labels: &Labels) -> Result<()> {
        let (id, labels) = (lease.clone(), labels.clone());
        self.call_in(scope, "create lease", &lease.0, move |state| {
            state
                .store
                .write(|transaction| insert(transaction, &id, &labels))
        })
        .await
    }

    /// Collects garbage at once, since no daemon does it later.
    async fn delete(&self, scope: &Scope, lease: &LeaseId) -> Result<()> {
        let id = lease.clone();
        self.call_in(scope, "delete lease", &lease.0, move |state| {
            if !state.store.write(|transaction| delete(transaction, &id))? {
                return Err(Fault::missing());
            }
            collect_leniently(state);
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

fn all(transaction: &Transaction<'_>) -> Result<Vec<LeaseInfo>, Fault> {
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
