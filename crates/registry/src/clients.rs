// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! HTTP clients, one for each configuration of TLS.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use resnap_core::{Digest, Kind};

use crate::address::is_loopback;
use crate::failure::Failure;
use crate::tls::Material;

/// The limit on the number of clients, each with its pool of connections.
const MAX_CLIENTS: usize = 8;

/// The limit on the number of idle connections to one host.
const MAX_IDLE: usize = 4;

/// The time for which a connection stays idle. Its buffers hold the credential of its last request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The properties that tell clients apart: the certificates, whether servers are not verified, whether
/// the server is on this machine, and the limit on the time to connect.
type Key = ((Vec<Digest>, bool), bool, Duration);

/// The clients of a source. The one unused for longest is dropped for a new one.
#[derive(Default)]
pub(crate) struct Clients(Mutex<Vec<(Key, Client)>>);

impl Clients {
    /// Returns a client for an address. It follows no redirects, and uses the proxies of the
    /// environment except for servers on this machine.
    pub(crate) fn get(
        &self,
        material: &Material,
        url: &Url,
        connect: Duration,
    ) -> Result<Client, Failure> {
        let is_local = is_loopback(url);
        let key = (material.identity(), is_local, connect);
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = clients.iter().position(|(other, _)| *other == key);
        let client = match found {
            Some(found) => clients.remove(found).1,
            None => build(material, is_local, connect)?,
        };
        if clients.len() >= MAX_CLIENTS {
            clients.remove(0);
        }
        clients.push((key, client.clone()));
        Ok(client)
    }
}

fn build(material: &Material, is_local: bool, connect: Duration) -> Result<Client, Failure> {
    let builder = Client::builder()
        .tls_backend_preconfigured(material.config()?)
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(connect)
        .pool_max_idle_per_host(MAX_IDLE)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("resnap/", env!("CARGO_PKG_VERSION")));
    let builder = if is_local {
        builder.no_proxy()
    } else {
        builder
    };
    let client = builder.build();
    client.map_err(|error| Failure::new(Kind::Internal, format!("no HTTP client: {error}")))
}
