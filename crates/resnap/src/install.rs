// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The changes to a node by which `resnap install` puts resnap between kubelet and containerd, and those by which
//! `resnap uninstall` takes it out again.
//!
//! | part | files | commands |
//! |---|---|---|
//! | [`entries`] | a file in the directory that containerd's configuration imports | containerd is restarted |
//! | [`service`] | the program, its units, a drop-in with this node's paths | the units are enabled and started |
//! | [`kubelet`] | a drop-in | kubelet is restarted |
//!
//! They are installed in this order and removed in the other one, so that kubelet always has a runtime. If a step
//! fails, those before it are undone. A [`record`] is written first: it has the files and directories to remove.

mod changes;
mod clients;
mod content;
mod difference;
mod entries;
mod files;
mod host;
mod kubelet;
mod record;
mod service;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use changes::Changes;
pub(crate) use changes::Step;
pub(crate) use entries::{Containerd, Handler};
use entries::{Entries, Plan};
pub(crate) use host::{Host, SystemPrograms};
use kubelet::Kubelet;
use record::Record;
pub(crate) use service::Facts;

/// The result of a run.
pub(crate) enum Outcome {
    Done {
        /// The steps that were done, or would be; none, if nothing is to be changed.
        steps: Vec<Step>,
        /// The text of what is left to the operator.
        left: Option<&'static str>,
    },
    /// The text of what has to be done by hand before. Nothing was changed.
    ByHand(String),
}

/// A run of one of the commands.
pub(crate) struct Run<'a> {
    pub(crate) host: &'a Host,
    /// Whether steps are only listed.
    pub(crate) dry_run: bool,
    /// Ends the run before its next step.
    pub(crate) stop: CancellationToken,
}

impl Run<'_> {
    /// Installs resnap, and the entries of a containerd for runtime handlers.
    ///
    /// # Errors
    /// A step failed. Those before it were undone, or the error says why not.
    pub(crate) async fn install(
        &self,
        facts: &Facts,
        entries: Option<(&Containerd, &[Handler])>,
    ) -> Result<Outcome> {
        let kubelet = Kubelet::find(self.host).await?;
        let obstacle = kubelet
            .as_ref()
            .and_then(|kubelet| kubelet.cannot_be_moved(self.host, &facts.containerd));
        if let Some(obstacle) = obstacle {
            return Ok(Outcome::ByHand(obstacle));
        }
        let record = Record::load(self.host)?.unwrap_or_default();
        let mut entries = match entries {
            None => None,
            Some((containerd, handlers)) => {
                match Entries::plan(self.host, containerd, handlers, &record).await? {
                    Plan::ByHand(text) => return Ok(Outcome::ByHand(text)),
                    Plan::Nothing => None,
                    Plan::Write(entries) => Some(entries),
                }
            }
        };
        let mut service = service::files(facts)?;
        let mut drop_in = kubelet.is_some().then(kubelet::drop_in);
        let entries_file = entries.as_mut().map(|entries| &mut entries.file);
        let all = entries_file.into_iter().chain(&mut service);
        let record = record.with(self.host, all.chain(&mut drop_in))?;
        let record = record.with_units(&service::disabled(self.host).await?);
        let left = kubelet.is_none().then_some(kubelet::NOT_MOVED);
        self.all_or_nothing(left, async |changes| {
            changes.write(&record.file()?)?;
            if let Some(entries) = &entries {
                entries.install(changes).await?;
            }
            service::install(changes, &service).await?;
            if let Some(drop_in) = &drop_in {
                kubelet::install(changes, drop_in).await?;
            }
            Ok(())
        })
        .await
    }

    /// Removes all that [`Self::install`] has written, kubelet's part first. `diff_plugins` are the sockets of
    /// containerd's diff plugins, if they are known.
    ///
    /// # Errors
    /// A step failed. Those before it were undone, or the error says why not.
    pub(crate) async fn uninstall(&self, diff_plugins: &[String]) -> Result<Outcome> {
        let Some(record) = Record::load(self.host)? else {
            return Ok(Outcome::Done {
                steps: Vec::new(),
                left: None,
            });
        };
        let kubelet = Kubelet::find(self.host).await?;
        let is_removed = service::is_removed(&record);
        let unit = kubelet.as_ref();
        let mut obstacle = unit.and_then(|unit| unit.cannot_be_moved_back(self.host, &record));
        // Another program may be the kubelet.
        if obstacle.is_none() && is_removed && !unit.is_some_and(Kubelet::runs) {
            obstacle = service::is_used(self.host).await?;
        }
        if obstacle.is_none() && is_removed {
            obstacle = service::cannot_be_removed(self.host, &record, diff_plugins).await?;
        }
        if let Some(obstacle) = obstacle {
            return Ok(Outcome::ByHand(obstacle));
        }
        let outcome = self
            .all_or_nothing(None, async |changes| {
                kubelet::uninstall(changes, &record, kubelet.as_ref()).await?;
                service::uninstall(changes, &record).await?;
                entries::uninstall(changes, &record).await?;
                changes.remove(record::PATH.as_ref())?;
                match is_removed {
                    true => changes.remove_all(service::RUNTIME_DIRECTORY.as_ref()),
                    false => Ok(()),
                }
            })
            .await?;
        if !self.dry_run {
            record.remove_directories(self.host);
        }
        Ok(outcome)
    }

    /// Makes changes, and undoes them if they fail.
    async fn all_or_nothing(
        &self,
        left: Option<&'static str>,
        make: impl AsyncFnOnce(&mut Changes<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let mut changes = Changes::new(self.host, self.dry_run, self.stop.clone());
        let made = make(&mut changes).await;
        match made {
            Ok(()) => Ok(Outcome::Done {
                steps: changes.into_steps(),
                left,
            }),
            Err(error) => Err(changes.undo(error).await),
        }
    }
}

#[cfg(test)]
mod tests;
