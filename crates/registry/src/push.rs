// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Repositories as destinations (distribution specification, "Push").

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{Body, Url};
use resnap_core::{
    ByteStream, Descriptor, Destination, Digest, Error, Kind, PullCredentials, Referrer,
    Repository, Result,
};

use crate::asked::Asked;
use crate::certs::endpoints;
use crate::clients::Clients;
use crate::failure::{Failure, error};
use crate::listing;
use crate::reference::{Reference, is_tag};
use crate::referrers::found;
use crate::rejections::Rejections;
use crate::request::location;
use crate::session::{Session, Shared};
use crate::settings::Settings;
use crate::token::Access;
use crate::upload::Upload;

/// The header with the digest of a manifest.
const DIGEST: &str = "docker-content-digest";

/// The header of registries that list referrers.
const SUBJECT: &str = "oci-subject";

/// A repository of a registry, as a destination.
pub struct RegistryDestination {
    shared: Shared,
    repository: Repository,
    tag: Option<String>,
    /// A session whose credential has worked.
    session: Mutex<Option<Session>>,
    /// Held while an index of referrers is read and written.
    listing: futures::lock::Mutex<()>,
}

impl RegistryDestination {
    /// Creates a destination in the repository of a reference such as `registry.example/team/web:1`. Nothing is asked
    /// yet.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is no reference, or one with a digest.
    pub fn new(settings: Settings, reference: &str) -> Result<Self> {
        let parsed = Reference::parse(reference, "push to")?;
        if parsed.digest.is_some() {
            let text = "it has a digest, which what is pushed has itself; name a tag instead";
            let error = Error::new(Kind::InvalidArgument, "push to", reference);
            return Err(error.with_source(text));
        }
        Ok(Self {
            shared: Shared {
                settings,
                credentials: PullCredentials::new(),
                clients: Clients::default(),
                rejections: Rejections::default(),
            },
            repository: parsed.repository,
            tag: parsed.tag.map(str::to_owned),
            session: Mutex::new(None),
            listing: futures::lock::Mutex::new(()),
        })
    }

    /// Returns the tag of the reference, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns a session, with the credential that has worked before.
    async fn session(&self) -> Result<Session, Failure> {
        let kept = self.kept().clone();
        match kept {
            Some(session) => Ok(session),
            None => self.new_session(Access::Push).await,
        }
    }

    async fn new_session(&self, access: Access) -> Result<Session, Failure> {
        let (directories, repository) = (
            self.shared.settings.host_directories.clone(),
            self.repository.clone(),
        );
        let made = tokio::task::spawn_blocking(move || {
            let hosts = endpoints(&directories, repository.host())?;
            let host = hosts.into_iter().find(|host| host.may.push);
            let host = host.ok_or_else(|| {
                let host = repository.host();
                let text = format!(
                    "{host}: hosts.toml has no host with the capability push; add it to one"
                );
                Failure::new(Kind::FailedPrecondition, text)
            })?;
            Session::new(host, repository, BTreeSet::new(), access)
        });
        made.await
            .map_err(|error| Failure::new(Kind::Internal, error.to_string()))?
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn is_present(&self, descriptor: &Descriptor) -> Result<bool, Failure> {
        let mut session = self.session().await?;
        let asked = Asked::Presence(descriptor);
        let found = found(session.ask_again(&self.shared, asked).await)?.is_some();
        *self.kept() = Some(session);
        Ok(found)
    }

    /// Returns whether a tag leads to this.
    async fn is_tagged(&self, manifest: &Descriptor, tag: &str) -> Result<bool, Failure> {
        let mut session = self.session().await?;
        let found = found(session.ask_again(&self.shared, Asked::Tag(tag)).await)?;
        *self.kept() = Some(session);
        let digest = found.and_then(|response| response.headers().get(DIGEST).cloned());
        Ok(digest.is_some_and(|digest| digest == manifest.digest.as_str()))
    }

    /// Stores a manifest. Returns whether the registry lists it as a referrer, if it is one.
    async fn store(
        &self,
        manifest: &Descriptor,
        bytes: &Bytes,
        name: &str,
    ) -> Result<bool, Failure> {
        let mut session = self.session().await?;
        let asked = Asked::Manifest {
            name,
            media_type: &manifest.media_type,
            bytes,
        };
        let stored = session.ask_again(&self.shared, asked).await?;
        *self.kept() = Some(session);
        Ok(stored.headers().contains_key(SUBJECT))
    }

    /// Begins the upload of a blob. Returns its session, the address that was asked and the one for the bytes.
    async fn begin(&self, blob: &Descriptor) -> Result<(Session, Url, Url), Failure> {
        let mut session = self.session().await?;
        let begun = session.ask_again(&self.shared, Asked::NewUpload).await?;
        *self.kept() = Some(session.clone());
        let from = begun.url().clone();
        let mut to = location(&from, &begun)?;
        to.query_pairs_mut()
            .append_pair("digest", blob.digest.as_str());
        Ok((session, from, to))
    }

    /// Removes a referrer from the index under the tag, and from the registry.
    async fn remove(&self, referrer: &Referrer, subject: &Digest) -> Result<(), Failure> {
        let digest = &referrer.descriptor.digest;
        let mut session = self.new_session(Access::Delete).await?;
        {
            let _held = self.listing.lock().await;
            let change = listing::edit(&self.shared, &mut session, subject, |index| {
                index.remove(digest)
            });
            change.await?;
        }
        let asked = Asked::Removal(digest);
        let mut failure = match found(session.ask_again(&self.shared, asked).await) {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        if failure.kind == Kind::Unimplemented {
            // Where the tag alone lists it, it is listed no more.
            if !listing::is_built_in(&self.shared, &mut session, referrer, subject).await? {
                return Ok(());
            }
            failure
                .text
                .push_str("; allow deletion in the registry's configuration");
        }
        Err(failure)
    }

    fn failed(&self, operation: &'static str, digest: &Digest, failure: Failure) -> Error {
        let mut failures = vec![failure];
        let kind = failures[0].kind;
        if matches!(kind, Kind::Unauthenticated | Kind::PermissionDenied) {
            let host = self.repository.host();
            let text = format!("a credential that may do it comes from `docker login {host}`");
            failures.push(Failure::new(kind, text));
        }
        error(operation, &self.subject(digest), &failures)
    }

    /// Returns the subject of errors.
    fn subject(&self, digest: &Digest) -> String {
        format!("{digest} at {}", self.repository)
    }

    fn check(&self, manifest: &Descriptor, bytes: &Bytes) -> Result<()> {
        let digest = manifest.digest.same_algorithm(bytes);
        let size = bytes.len() as u64;
        if digest == manifest.digest && size == manifest.size {
            return Ok(());
        }
        let text = format!(
            "its descriptor has {} bytes, and there are {size} with the digest {digest}",
            manifest.size
        );
        let subject = self.subject(&manifest.digest);
        Err(Error::new(Kind::DataLoss, PUSH, subject).with_source(text))
    }
}

/// The operation in errors.
const PUSH: &str = "push";

impl fmt::Debug for RegistryDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryDestination")
            .field("repository", &self.repository)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Destination for RegistryDestination {
    async fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let found = self.is_present(descriptor).await;
        found.map_err(|failure| self.failed("look for", &descriptor.digest, failure))
    }

    async fn put_blob(&self, blob: &Descriptor, bytes: ByteStream) -> Result<()> {
        let failed = |failure| self.failed(PUSH, &blob.digest, failure);
        if self.is_present(blob).await.map_err(failed)? {
            return Ok(());
        }
        let (session, from, to) = self.begin(blob).await.map_err(failed)?;
        let (upload, body) = Upload::new(blob, bytes, self.subject(&blob.digest));
        let body = Body::wrap_stream(body);
        let sent = session.upload(&self.shared, (&from, &to), &upload, body);
        let sent = sent.await;
        // Then the connection broke for it.
        if let Some(error) = upload.error() {
            return Err(error);
        }
        sent.map_err(failed)
    }

    async fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<()> {
        self.check(manifest, &bytes)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            let text = format!("{tag:?} is no tag of a registry");
            let subject = self.subject(&manifest.digest);
            return Err(Error::new(Kind::InvalidArgument, PUSH, subject).with_source(text));
        }
        let failed = |failure| self.failed(PUSH, &manifest.digest, failure);
        // Registries refuse to write some tags twice, even the same.
        let is_there = match tag {
            Some(tag) => self.is_tagged(manifest, tag).await,
            None => self.is_present(manifest).await,
        };
        if !is_there.map_err(failed)? {
            let name = tag.unwrap_or(manifest.digest.as_str());
            self.store(manifest, &bytes, name).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn put_referrer(
        &self,
        referrer: &Referrer,
        bytes: Bytes,
        subject: &Digest,
    ) -> Result<()> {
        let manifest = &referrer.descriptor;
        self.check(manifest, &bytes)?;
        let failed = |failure| self.failed(PUSH, &manifest.digest, failure);
        // Even if it is there: the answer tells whether the registry lists it.
        let stored = self.store(manifest, &bytes, manifest.digest.as_str());
        if stored.await.map_err(failed)? {
            return Ok(());
        }
        let _held = self.listing.lock().await;
        let mut session = self.session().await.map_err(failed)?;
        let change = listing::edit(&self.shared, &mut session, subject, |index| {
            index.add(referrer)
        });
        change.await.map_err(failed)
    }

    async fn remove_referrer(&self, referrer: &Referrer, subject: &Digest) -> Result<()> {
        let digest = &referrer.descriptor.digest;
        let removed = self.remove(referrer, subject).await;
        removed.map_err(|failure| self.failed("remove", digest, failure))
    }
}
