// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a service manager gives, and what it is told. Without one nothing of it happens.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use listenfd::ListenFd;
use resnap_cri_proxy::Proxy;
use sd_notify::NotifyState;

/// What a socket unit calls the sockets: its `FileDescriptorName=`.
const NAMES: [&str; 2] = ["cri", "api"];

/// The sockets at which the service manager listens for us, by name.
#[derive(Debug, Default)]
pub(crate) struct Sockets(BTreeMap<String, UnixListener>);

impl Sockets {
    /// Those that were handed over. To be called while there is one thread: it changes the
    /// environment.
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

    /// The one of this name, if it was handed over.
    pub(super) fn take(&mut self, name: &str) -> Option<UnixListener> {
        self.0.remove(name)
    }
}

/// That it waits, and why.
pub(super) fn waiting(reason: &str) {
    let line = reason.replace('\n', " ");
    tell(&[NotifyState::Status(&format!("waiting: {line}"))]);
}

/// That it serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// That it serves nobody new.
pub(super) fn stopping() {
    let status = NotifyState::Status("calls that are under way end");
    tell(&[NotifyState::Stopping, status]);
}

/// Says, as often as is wanted, that tasks of this runtime run, and those of the thread that serves
/// the CRI's clients once it does.
pub(super) fn keep_telling(serving: Arc<OnceLock<Proxy>>) {
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
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told {state:?}");
    }
}
