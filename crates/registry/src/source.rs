// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The source of blobs.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream;
use reqwest::Url;
use resnap_core::{
    BlobSource, ByteStream, Error, Image, Kind, Labels, MissingBlob, PodId, PullCredentials,
    Referrer, Repository, Result,
};

use crate::address::{is_inwards, is_private};
use crate::certs::endpoints;
use crate::clients::Clients;
use crate::failure::Failure;
use crate::referrers::Search;
use crate::rejections::Rejections;
use crate::resolve::Resolution;
use crate::session::{Session, Shared};
use crate::settings::Settings;
use crate::token::Access;
use crate::transfer::Transfer;

/// The limit on the number of repositories that are asked for one blob.
const MAX_REPOSITORIES: usize = 16;

/// The limit on the number of hosts that are asked for one blob.
const MAX_SESSIONS: usize = 32;

/// The limit on the number of addresses of a descriptor that are tried.
const MAX_ADDRESSES: usize = 8;

/// The registries as a source of blobs. Clones share connections.
#[derive(Clone)]
pub struct RegistrySource(Arc<Shared>);

impl RegistrySource {
    /// Creates a source with the credentials that pulls bring. Files are read when blobs are asked for.
    pub fn new(settings: Settings, credentials: PullCredentials) -> Self {
        Self(Arc::new(Shared {
            settings,
            credentials,
            clients: Clients::default(),
            rejections: Rejections::default(),
        }))
    }

    /// Makes the sessions for a blob.
    async fn sessions(
        &self,
        blob: &MissingBlob,
        operation: &'static str,
    ) -> Result<(Vec<Session>, Vec<Failure>)> {
        let digest = blob.descriptor.digest.as_str();
        self.sessions_of(repositories(blob), &blob.pods, (operation, digest))
            .await
    }

    /// Makes the sessions for these repositories.
    async fn sessions_of(
        &self,
        repositories: Vec<Repository>,
        pods: &BTreeSet<PodId>,
        (operation, subject): (&'static str, &str),
    ) -> Result<(Vec<Session>, Vec<Failure>)> {
        let (shared, pods) = (self.0.clone(), pods.clone());
        let made =
            tokio::task::spawn_blocking(move || sessions(&shared.settings, repositories, &pods));
        made.await
            .map_err(|error| Error::new(Kind::Internal, operation, subject).with_source(error))
    }

    /// Returns the image that a reference names now, by its full name: `web` is
    /// `docker.io/library/web:latest`.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is no reference; [`Kind::NotFound`] if the registry does not have it;
    /// [`Kind::DataLoss`] if the registry answers with something else; otherwise those of
    /// [`BlobSource::open`].
    pub async fn resolve(&self, reference: &str) -> Result<Image> {
        let resolution = Resolution::parse(&self.0, reference)?;
        let repositories = vec![resolution.repository.clone()];
        let (pods, about) = (BTreeSet::new(), (Resolution::OPERATION, reference));
        let sessions = self.sessions_of(repositories, &pods, about);
        let (sessions, failures) = sessions.await?;
        Ok(Image {
            target: resolution.run(sessions, failures).await?,
            name: resolution.name(),
            labels: Labels::new(),
        })
    }
}

impl fmt::Debug for RegistrySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.0.settings;
        f.debug_struct("RegistrySource")
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl BlobSource for RegistrySource {
    fn name(&self) -> &'static str {
        "registry"
    }

    async fn open(&self, blob: &MissingBlob, offset: u64) -> Result<ByteStream> {
        let descriptor = blob.descriptor.clone();
        if offset >= descriptor.size && offset > 0 {
            if offset == descriptor.size {
                return Ok(Box::pin(stream::empty()));
            }
            let text = format!("byte {offset} is past the end, at {}", descriptor.size);
            return Err(
                Error::new(Kind::InvalidArgument, "fetch", descriptor.digest.as_str())
                    .with_source(text),
            );
        }
        let (sessions, failures) = self.sessions(blob, "fetch").await?;
        let names = || sessions.iter().map(Session::name).collect::<Vec<_>>();
        tracing::debug!(digest = %descriptor.digest, offset, hosts = ?names(), "fetching a blob");
        let addresses = blob.urls.iter().filter_map(|url| Url::parse(url).ok());
        let is_local = sessions.iter().any(Session::is_inwards);
        let addresses = addresses.filter(|url| {
            let has_user = !url.username().is_empty() || url.password().is_some();
            is_private(url) && (is_local || !is_inwards(url)) && !has_user
        });
        let addresses = addresses.take(MAX_ADDRESSES).collect();
        let mut transfer = Transfer::new(
            self.0.clone(),
            descriptor,
            offset,
            sessions,
            addresses,
            failures,
        );
        transfer.connect().await?;
        Ok(Box::pin(stream::try_unfold(
            transfer,
            |mut transfer| async { Ok(transfer.next().await?.map(|bytes| (bytes, transfer))) },
        )))
    }

    async fn referrers(
        &self,
        subject: &MissingBlob,
        artifact_types: &[&str],
    ) -> Result<Vec<Referrer>> {
        let (sessions, failures) = self.sessions(subject, Search::OPERATION).await?;
        let search = Search {
            shared: &self.0,
            subject: &subject.descriptor.digest,
            artifact_types,
        };
        search.run(sessions, failures).await
    }

    fn reject(&self, blob: &MissingBlob) -> bool {
        self.0.rejections.reject(&blob.descriptor.digest)
    }
}

/// Makes the sessions in which a blob is asked for, in order. The failures are those of hosts whose
/// configuration is wrong.
fn sessions(
    settings: &Settings,
    repositories: Vec<Repository>,
    pods: &BTreeSet<PodId>,
) -> (Vec<Session>, Vec<Failure>) {
    let (mut sessions, mut failures) = (Vec::new(), Vec::new());
    for repository in repositories {
        let endpoints = match endpoints(&settings.host_directories, repository.host()) {
            Ok(endpoints) => endpoints.into_iter().filter(|host| host.may.pull),
            Err(failure) => {
                failures.push(failure);
                continue;
            }
        };
        let mut endpoints = endpoints.peekable();
        if endpoints.peek().is_none() {
            let text = format!(
                "{}: hosts.toml has no host with the capability pull",
                repository.host()
            );
            failures.push(Failure::new(Kind::FailedPrecondition, text));
        }
        for endpoint in endpoints {
            match Session::new(endpoint, repository.clone(), pods.clone(), Access::Pull) {
                Ok(session) => sessions.push(session),
                Err(failure) => failures.push(failure),
            }
        }
    }
    sessions.truncate(MAX_SESSIONS);
    (sessions, failures)
}

/// Returns the repositories that may have a blob, the reference's first.
fn repositories(blob: &MissingBlob) -> Vec<Repository> {
    let mut repositories = Vec::new();
    let reference = blob.reference.as_deref().and_then(Repository::of_reference);
    // containerd's labels lack the port of the host (`core/remotes/docker/handler.go`).
    let with_port = |host: &str| match reference.as_ref().map(Repository::host) {
        Some(full) if full.rsplit_once(':').is_some_and(|(name, _)| name == host) => {
            full.to_owned()
        }
        _ => host.to_owned(),
    };
    let others = blob.repositories.iter().flat_map(|(host, paths)| {
        let host = with_port(host);
        let paths = paths.iter();
        paths.filter_map(move |path| Repository::new(&host, path))
    });
    let others: Vec<_> = others.collect();
    for repository in reference.into_iter().chain(others) {
        if !repositories.contains(&repository) {
            repositories.push(repository);
        }
    }
    repositories.truncate(MAX_REPOSITORIES);
    repositories
}

#[cfg(test)]
mod tests {
    use resnap_core::{Descriptor, Digest};

    use super::*;

    #[test]
    fn labels_of_the_host_of_the_reference_get_its_port() {
        let blob = |reference: &str| MissingBlob {
            descriptor: Descriptor {
                digest: Digest::sha256(b""),
                media_type: String::new(),
                size: 0,
                platform: None,
                annotations: Default::default(),
            },
            reference: Some(reference.to_owned()),
            repositories: [
                (
                    "a.example".to_owned(),
                    vec!["web".to_owned(), "base".to_owned()],
                ),
                ("b.example".to_owned(), vec!["web".to_owned()]),
            ]
            .into(),
            urls: Vec::new(),
            pods: Default::default(),
        };
        let of = |reference| {
            let all = repositories(&blob(reference)).into_iter();
            all.map(|repository| repository.to_string())
                .collect::<Vec<_>>()
        };
        let with_port = ["a.example:5000/web", "a.example:5000/base", "b.example/web"];
        assert_eq!(of("a.example:5000/web:1"), with_port);
        assert_eq!(
            of("a.example/web:1"),
            ["a.example/web", "a.example/base", "b.example/web"]
        );
    }
}
