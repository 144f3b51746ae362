// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A source with settings in a directory of its own, and a blob.

use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use resnap_core::{
    BlobSource, Descriptor, Digest, MissingBlob, PodId, PullCredentials, Result, error_chain,
};
use resnap_registry::{RegistryDestination, RegistrySource, Settings};
use tempfile::TempDir;

/// The blob of the tests.
pub(crate) const BLOB: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

pub(crate) struct Bed {
    directory: TempDir,
    pub(crate) settings: Settings,
    pub(crate) credentials: PullCredentials,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            host_directories: vec![directory.path().join("certs.d")],
            docker_configs: vec![directory.path().join("config.json")],
            helper_directories: vec![directory.path().join("helpers")],
            stall: Duration::from_secs(1),
            connect: Duration::from_secs(2),
            backoff: Duration::from_millis(2),
        };
        Self {
            directory,
            settings,
            credentials: PullCredentials::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the `hosts.toml` of a registry.
    pub(crate) fn hosts(&self, host: &str, text: &str) {
        let directory = self.path().join("certs.d").join(host);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    /// Writes Docker's config file.
    pub(crate) fn docker(&self, text: &str) {
        std::fs::write(self.path().join("config.json"), text).unwrap();
    }

    pub(crate) fn source(&self) -> RegistrySource {
        RegistrySource::new(self.settings.clone(), self.credentials.clone())
    }

    /// Returns the repository `team/web` of a registry.
    pub(crate) fn destination(&self, host: &str) -> RegistryDestination {
        let reference = format!("{host}/team/web:1");
        RegistryDestination::new(self.settings.clone(), &reference).unwrap()
    }

    pub(crate) async fn fetch(&self, blob: &MissingBlob) -> Result<Vec<u8>> {
        self.fetch_from(blob, 0).await
    }

    pub(crate) async fn fetch_from(&self, blob: &MissingBlob, offset: u64) -> Result<Vec<u8>> {
        let stream = self.source().open(blob, offset).await?;
        let pieces: Vec<_> = stream.try_collect().await?;
        Ok(pieces.concat())
    }

    /// Fetches what cannot be fetched, and returns the error's kind and text.
    pub(crate) async fn failure(&self, blob: &MissingBlob) -> (resnap_core::Kind, String) {
        let error = self.fetch(blob).await.unwrap_err();
        (error.kind(), error_chain(&error))
    }
}

/// Returns a pod by its name.
pub(crate) fn pod(name: &str) -> PodId {
    PodId::new(name, "1")
}

/// Returns the blob as missing from the repository `team/web` of a registry.
pub(crate) fn missing(host: &str) -> MissingBlob {
    MissingBlob {
        descriptor: Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::sha256(BLOB),
            size: BLOB.len() as u64,
            annotations: Default::default(),
            platform: None,
        },
        reference: Some(format!("{host}/team/web:1")),
        repositories: Default::default(),
        urls: Vec::new(),
        pods: [pod("ns/a")].into(),
    }
}

/// Returns the target of the blob's request.
pub(crate) fn target() -> String {
    format!("/v2/team/web/blobs/{}", Digest::sha256(BLOB))
}
