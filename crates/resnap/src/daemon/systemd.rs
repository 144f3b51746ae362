// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The service manager: sockets it hands over, and notifications to it. Without one, all of this does
//! nothing.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use listenfd::ListenFd;
use resnap_cri_proxy::Proxy;
use sd_notify::NotifyState;

/// The names of the sockets in a socket unit (`FileDescriptorName=`).
const NAMES: [&str; 3] = ["cri", "api", "diff"];

/// The sockets that the service manager handed over, by name.
#[derive(Debug, Default)]
pub(crate) struct Sockets(BTreeMap<String, UnixListener>);

impl Sockets {
    /// Takes the sockets from the service manager. Must be called while the process has one thread,
    /// since it changes the environment.
    pub(crate) fn handed_over() -> Result<Self> {
        let mut given = ListenFd::from_env();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = BTreeMap::new();
        for index in 0..given.len() {
            let name = names.next().unwrap_or_default();
            if !NAMES.contains(&name) {
                bail!("socket {name:?} was handed over; FileDescriptorName= is one of {NAMES:?}");
            }
            let socket = given.take_unix_listener(index);
            let socket = socket.with_context(|| format!("take socket {name:?}"))?;
            if socket.is_some_and(|socket| sockets.insert(name.to_owned(), socket).is_some()) {
                bail!("two sockets {name:?} were handed over");
            }
        }
        Ok(Self(sockets))
    }

    /// Takes the socket of this name.
    pub(super) fn take(&mut self, name: &str) -> Option<UnixListener> {
        self.0.remove(name)
    }
}

/// Reports that the daemon waits, and the reason.
pub(super) fn waiting(reason: &str) {
    let line = reason.replace('\n', " ");
    notify(&[NotifyState::Status(&format!("waiting: {line}"))]);
}

/// Reports that the daemon serves.
pub(super) fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Reports that the daemon accepts no more clients.
pub(super) fn stopping() {
    let status = NotifyState::Status("finishing calls in progress");
    notify(&[NotifyState::Stopping, status]);
}

/// Feeds the watchdog for as long as the tasks of this runtime make progress, and those of the thread
/// that serves the CRI once it is started.
pub(super) fn keep_watchdog(serving: Arc<OnceLock<Proxy>>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(limit / 2);
        loop {
            interval.tick().await;
            if let Some(proxy) = serving.get() {
                proxy.alive().await;
            }
            notify(&[NotifyState::Watchdog]);
        }
    });
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified of {state:?}");
    }
}
