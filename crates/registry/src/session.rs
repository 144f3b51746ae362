// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Sessions: requests at one host of one repository, with the credentials for it.

use std::collections::{BTreeSet, VecDeque};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Body, Response, StatusCode, Url};
use resnap_core::{Credential, Kind, PodId, PullCredentials, Repository};
use tokio::time::sleep;

use crate::address::{authority, is_inwards, is_registry, same_origin};
use crate::asked::Asked;
use crate::challenge::Challenge;
use crate::clients::Clients;
use crate::failure::{Failure, Retry, worst};
use crate::hosts::Endpoint;
use crate::refusal::{foreign, refused};
use crate::rejections::Rejections;
use crate::request::{Request, Way};
use crate::settings::Settings;
use crate::stored::stored;
use crate::tls::Material;
use crate::token::{self, Access};
use crate::upload::Upload;

/// The limit on the number of times that a host is asked for the same.
const MAX_ATTEMPTS: u32 = 3;

/// The state that all transfers share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) credentials: PullCredentials,
    pub(crate) clients: Clients,
    pub(crate) rejections: Rejections,
}

/// The requests for one blob, or for one list of referrers, at one host. A clone has the same credential in use.
#[derive(Clone)]
pub(crate) struct Session {
    endpoint: Endpoint,
    material: Material,
    repository: Repository,
    pods: BTreeSet<PodId>,
    /// The actions that tokens are asked for.
    access: Access,
    /// The last challenge of the host.
    challenge: Option<Challenge>,
    /// The credentials that are still to be tried, no credential last; `None` until they are needed.
    credentials: Option<VecDeque<Option<Credential>>>,
    /// The credential in use.
    current: Option<Option<Credential>>,
    authorization: Option<HeaderValue>,
    /// Whether a request with `authorization` succeeded.
    has_worked: bool,
    /// Why credentials did not serve.
    failures: Vec<Failure>,
}

impl Session {
    /// Creates a session for a repository at a host that serves its registry.
    pub(crate) fn new(
        endpoint: Endpoint,
        repository: Repository,
        pods: BTreeSet<PodId>,
        access: Access,
    ) -> Result<Self, Failure> {
        Ok(Self {
            material: Material::read(&endpoint.tls)?,
            endpoint,
            repository,
            pods,
            access,
            challenge: None,
            credentials: None,
            current: None,
            authorization: None,
            has_worked: false,
            failures: Vec::new(),
        })
    }

    /// Returns the host and the repository, for the log.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", authority(&self.endpoint.root), self.repository)
    }

    /// Returns whether the host is one that other machines cannot reach.
    pub(crate) fn is_inwards(&self) -> bool {
        is_inwards(&self.endpoint.root)
    }

    /// Returns whether the host is asked for the targets of tags.
    pub(crate) fn may_resolve(&self) -> bool {
        self.endpoint.may.resolve
    }

    /// Returns whether an address is at the host.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        same_origin(&self.endpoint.root, url)
    }

    /// Asks the host. Credentials are tried when it asks for one.
    pub(crate) async fn ask(
        &mut self,
        shared: &Shared,
        asked: Asked<'_>,
    ) -> Result<Response, Failure> {
        loop {
            let url = self.url(asked);
            let request = Request {
                method: asked.method(),
                own: self.own_headers(),
                all: asked.headers(),
                body: asked.body(),
            };
            let response = self.way(shared, &self.material).ask(&url, &request).await;
            let response = match response {
                Err(failure) if failure.is_plain && self.endpoint.may_be_plain => {
                    self.endpoint.may_be_plain = false;
                    if self.endpoint.root.set_scheme("http").is_err() {
                        return Err(failure);
                    }
                    continue;
                }
                response => response?,
            };
            let status = response.status();
            tracing::debug!(
                host = authority(&url),
                path = url.path(),
                status = status.as_u16(),
                "asked a registry"
            );
            if asked.is_answer(status) {
                self.has_worked = true;
                return Ok(response);
            }
            if !same_origin(response.url(), &url) {
                return Err(foreign(response, shared.settings.stall).await);
            }
            let challenge = Challenge::of(response.headers());
            let failure = refused(&url, response, shared.settings.stall).await;
            if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Err(failure);
            }
            self.challenge = challenge.or(self.challenge.take());
            self.failures.push(failure);
            if !self
                .authorize(shared, status == StatusCode::UNAUTHORIZED)
                .await?
            {
                return Err(worst(&self.failures));
            }
        }
    }

    /// Asks the host, and again after failures that pass.
    pub(crate) async fn ask_again(
        &mut self,
        shared: &Shared,
        asked: Asked<'_>,
    ) -> Result<Response, Failure> {
        let mut attempt = 1;
        loop {
            let failure = match self.ask(shared, asked).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            match failure.retry.wait(shared.settings.backoff, attempt) {
                Some(wait) if attempt < MAX_ATTEMPTS => sleep(wait).await,
                _ => return Err(failure),
            }
            attempt += 1;
        }
    }

    /// Sends a body to the address that the host gave for it, `to`, in its answer from `from`. It is sent once. Another
    /// host gets no credentials.
    pub(crate) async fn upload(
        &self,
        shared: &Shared,
        (from, to): (&Url, &Url),
        upload: &Upload,
        body: Body,
    ) -> Result<(), Failure> {
        let others = self.material.for_others();
        let is_own = self.is_at(to);
        let way = self.way(shared, if is_own { &self.material } else { &others });
        let own = is_own.then(|| self.own_headers());
        let response = way
            .upload((from, to), own.unwrap_or_default(), upload, body)
            .await?;
        tracing::debug!(
            host = authority(to),
            path = to.path(),
            status = response.status().as_u16(),
            "uploaded a blob"
        );
        if response.status().is_success() {
            return Ok(());
        }
        match is_own {
            true => Err(refused(to, response, shared.settings.stall).await),
            false => Err(foreign(response, shared.settings.stall).await),
        }
    }

    /// Returns the headers for the host alone.
    fn own_headers(&self) -> HeaderMap {
        let mut own = self.endpoint.headers.clone();
        if let Some(value) = &self.authorization {
            own.insert(AUTHORIZATION, value.clone());
        }
        own
    }

    fn url(&self, asked: Asked<'_>) -> Url {
        let mirrored = (!self.is_registry()).then(|| self.repository.host());
        asked.url(&self.endpoint.root, self.repository.path(), mirrored)
    }

    /// Returns whether the host is the repository's registry itself, and not a mirror of it.
    pub(crate) fn is_registry(&self) -> bool {
        is_registry(&self.endpoint.root, self.repository.host())
    }

    fn way<'a>(&self, shared: &'a Shared, material: &'a Material) -> Way<'a> {
        Way {
            clients: &shared.clients,
            material,
            connect: self
                .endpoint
                .dial_timeout
                .unwrap_or(shared.settings.connect),
            stall: shared.settings.stall,
            is_private: false,
        }
    }

    /// Takes the next credential that answers the challenge; false if there is none. One that had worked
    /// is tried again first, since tokens expire.
    async fn authorize(
        &mut self,
        shared: &Shared,
        is_unauthenticated: bool,
    ) -> Result<bool, Failure> {
        let Some(challenge) = self.challenge.clone() else {
            return Ok(false);
        };
        let mut queue = match self.credentials.take() {
            Some(queue) => queue,
            None => self.find(shared).await,
        };
        let has_worked = std::mem::take(&mut self.has_worked);
        if let Some(current) = self
            .current
            .take()
            .filter(|_| has_worked && is_unauthenticated)
        {
            self.failures.clear();
            queue.push_front(current);
        }
        let mut result = Ok(false);
        while let Some(credential) = queue.pop_front() {
            match self.answer(shared, &challenge, credential.as_ref()).await {
                Ok(None) => {}
                Ok(Some(header)) => {
                    self.authorization = Some(header);
                    self.current = Some(credential);
                    result = Ok(true);
                    break;
                }
                Err(failure) => {
                    let (kind, retry) = (failure.kind, failure.retry);
                    self.failures.push(failure);
                    if retry != Retry::Never {
                        queue.push_front(credential);
                        let mut failure = worst(&self.failures).worth(retry);
                        failure.kind = kind;
                        result = Err(failure);
                        break;
                    }
                }
            }
        }
        self.credentials = Some(queue);
        result
    }

    /// Makes the header by which a credential answers a challenge; `None` if it cannot.
    async fn answer(
        &self,
        shared: &Shared,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let (realm, service, scope) = match (challenge, credential) {
            (Challenge::Basic, credential) => return Ok(credential.and_then(token::basic)),
            (Challenge::Bearer { .. }, Some(Credential::RegistryToken(token))) => {
                return Ok(token::bearer(token));
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => (realm, service, scope),
        };
        let others = self.material.for_others();
        let server = Url::parse(realm);
        let is_own = server
            .as_ref()
            .is_ok_and(|server| same_origin(server, &self.endpoint.root));
        if !is_inwards(&self.endpoint.root) && server.as_ref().is_ok_and(is_inwards) {
            // What it answers would go to the registry.
            let text = format!("{}: its token server is on this machine", self.name());
            return Err(Failure::new(Kind::Unavailable, text));
        }
        let material = if is_own { &self.material } else { &others };
        let wanted = token::Wanted {
            realm,
            service: service.as_deref(),
            scope: scope.as_deref(),
            path: self.repository.path(),
            access: self.access,
        };
        let token = token::request(self.way(shared, material), wanted, credential).await?;
        Ok(token::bearer(&token))
    }

    /// Finds the credentials for the host, in the order in which they are tried. What a pull brought is
    /// for the registry, not for its mirrors.
    async fn find(&mut self, shared: &Shared) -> VecDeque<Option<Credential>> {
        let mut found = VecDeque::new();
        let is_registry = self.is_registry();
        for pod in self.pods.iter().filter(|_| is_registry) {
            found.extend(shared.credentials.get(&self.repository, pod).map(Some));
        }
        let host = if is_registry {
            self.repository.host().to_owned()
        } else {
            authority(&self.endpoint.root)
        };
        let (stored, notes) = stored(&shared.settings, &host, self.repository.path()).await;
        found.extend(stored.into_iter().map(Some));
        self.failures.extend(notes);
        found.push_back(None);
        found
    }
}
