// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Credentials for registries, kept in memory only.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::{Error, Kind, PodId, Repository, Result};

/// A secret text. Its memory is zeroed on drop, and its `Debug` form says nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Returns the text, for sending it. The caller copies it into nothing that outlives the request.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A credential for a registry.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A name and a password, for the registry itself or for the server of its tokens.
    Basic {
        /// The name.
        username: Secret,
        /// The password.
        password: Secret,
    },
    /// A refresh token, for the server of the registry's tokens.
    IdentityToken(Secret),
    /// A token for the registry itself.
    RegistryToken(Secret),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential::Basic",
            Self::IdentityToken(_) => "Credential::IdentityToken",
            Self::RegistryToken(_) => "Credential::RegistryToken",
        })
    }
}

/// The credentials that pulls of images brought.
///
/// A credential belongs to the pull that brought it: it is found only for the same repository of the
/// same registry and for the same pod. It is dropped after its lifetime, and its memory is then zeroed.
/// The store is memory only and holds at most [`PullCredentials::MAX`] credentials. Clones share it.
#[derive(Clone, Default)]
pub struct PullCredentials(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    repository: Repository,
    pod: PodId,
    credential: Credential,
    expiry: Instant,
}

impl PullCredentials {
    /// The lifetime that a credential should get if nothing else is known: one hour. Pods that start
    /// together pull within minutes; tokens of clouds live for some hours.
    pub const LIFETIME: Duration = Duration::from_secs(60 * 60);
    /// The maximum number of credentials. With one more, the one that would expire first is dropped.
    pub const MAX: usize = 1024;

    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the credential by which `pod` pulled an image, in place of the earlier one for the same
    /// repository and pod.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if `reference` names no repository.
    pub fn insert(
        &self,
        reference: &str,
        credential: Credential,
        pod: &PodId,
        lifetime: Duration,
    ) -> Result<()> {
        let repository = Repository::of_reference(reference).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, "keep the credential for", reference)
                .with_source("the name is not a reference to an image")
        })?;
        let now = Instant::now();
        // A lifetime past the end of the clock is cut.
        let lifetime = lifetime.min(Duration::from_secs(7 * 24 * 60 * 60));
        let mut entries = self.entries_at(now);
        entries.retain(|entry| entry.repository != repository || entry.pod != *pod);
        if entries.len() >= Self::MAX {
            let expiries = entries.iter().enumerate();
            if let Some((first, _)) = expiries.min_by_key(|(_, entry)| entry.expiry) {
                entries.swap_remove(first);
            }
        }
        entries.push(Entry {
            repository,
            pod: pod.clone(),
            credential,
            expiry: now + lifetime,
        });
        Ok(())
    }

    /// Returns the credential by which `pod` pulled from this repository; `None` if there is none, or its
    /// lifetime is over.
    pub fn get(&self, repository: &Repository, pod: &PodId) -> Option<Credential> {
        let entries = self.entries_at(Instant::now());
        let found = entries
            .iter()
            .find(|entry| entry.repository == *repository && entry.pod == *pod);
        found.map(|entry| entry.credential.clone())
    }

    /// Drops the credentials whose lifetime is over. Every other call does so too; a process that may
    /// be idle calls this from time to time.
    pub fn remove_expired(&self) {
        drop(self.entries_at(Instant::now()));
    }

    /// Drops the credentials of all pods but these.
    pub fn retain_pods(&self, pods: &BTreeSet<PodId>) {
        self.entries_at(Instant::now())
            .retain(|entry| pods.contains(&entry.pod));
    }

    /// Returns whether there is no credential.
    pub fn is_empty(&self) -> bool {
        self.entries_at(Instant::now()).is_empty()
    }

    /// Returns the entries that live at this time.
    fn entries_at(&self, now: Instant) -> MutexGuard<'_, Vec<Entry>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| now < entry.expiry);
        entries
    }
}

impl fmt::Debug for PullCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullCredentials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Credential {
        Credential::RegistryToken(text.into())
    }

    fn pod(name: &str) -> PodId {
        PodId::new(name, "1")
    }

    fn repository(reference: &str) -> Repository {
        Repository::of_reference(reference).unwrap()
    }

    #[test]
    fn a_credential_serves_its_repository_and_pod_only() {
        let store = PullCredentials::new();
        let hour = PullCredentials::LIFETIME;
        let clone = store.clone();
        clone
            .insert("a.b/c:1", token("x"), &pod("ns/p"), hour)
            .unwrap();
        let found = |reference: &str, name| store.get(&repository(reference), &pod(name));
        assert_eq!(found("a.b/c:2", "ns/p"), Some(token("x")));
        assert_eq!(found("a.b/c/d", "ns/p"), None);
        assert_eq!(found("a.b:443/c", "ns/p"), None);
        assert_eq!(found("a.b/c", "ns/q"), None);
        assert_eq!(found("a.b/c", ""), None);
        // A pod that was made again is another.
        let again = PodId::new("ns/p", "2");
        assert_eq!(store.get(&repository("a.b/c"), &again), None);
        store
            .insert("a.b/c", token("y"), &pod("ns/p"), hour)
            .unwrap();
        assert_eq!(found("a.b/c", "ns/p"), Some(token("y")));
        store.retain_pods(&[pod("ns/p")].into());
        assert!(!store.is_empty());
        store.retain_pods(&[pod("ns/q"), again].into());
        assert!(store.is_empty());
    }

    #[test]
    fn a_credential_expires() {
        let store = PullCredentials::new();
        store
            .insert("web", token("x"), &pod("ns/p"), Duration::ZERO)
            .unwrap();
        assert_eq!(store.get(&repository("web"), &pod("ns/p")), None);
        assert!(store.0.lock().unwrap().is_empty());
        store
            .insert("web", token("x"), &pod("ns/p"), Duration::MAX)
            .unwrap();
        store.remove_expired();
        assert!(store.get(&repository("web"), &pod("ns/p")).is_some());
    }

    #[test]
    fn the_number_is_limited() {
        let store = PullCredentials::new();
        for number in 0..=PullCredentials::MAX {
            let lifetime = Duration::from_secs(3600 + number as u64);
            let pod = pod(&format!("ns/{number}"));
            store.insert("web", token("x"), &pod, lifetime).unwrap();
        }
        assert_eq!(store.0.lock().unwrap().len(), PullCredentials::MAX);
        assert_eq!(store.get(&repository("web"), &pod("ns/0")), None);
        assert!(store.get(&repository("web"), &pod("ns/1")).is_some());
    }

    #[test]
    fn a_bad_reference_is_an_error_without_the_credential() {
        let error = PullCredentials::new()
            .insert("a b", token("hidden"), &pod("ns/p"), Duration::MAX)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(!format!("{error:?}").contains("hidden"));
    }

    #[test]
    fn nothing_is_printed() {
        let store = PullCredentials::new();
        let basic = Credential::Basic {
            username: "name".into(),
            password: "hidden".into(),
        };
        store
            .insert("web", basic.clone(), &pod("ns/p"), Duration::MAX)
            .unwrap();
        let text = format!("{store:?} {basic:?} {:?}", Secret::from("hidden"));
        assert!(!text.contains("hidden") && !text.contains("name"), "{text}");
    }
}
