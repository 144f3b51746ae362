// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The part of kubelet that decides about pulls (Kubernetes 1.35, `pkg/kubelet/images`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use resnap_integration::cri::{Cri, Exited, Sandbox};
use resnap_integration::image::digest;
use serde_json::{Value, json};

/// The pull policy of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    IfNotPresent,
    Never,
}

/// A pull secret: a user and a password.
pub(crate) type Secret = Option<(&'static str, &'static str)>;

/// A kubelet, with its directory.
pub(crate) struct Kubelet {
    root: PathBuf,
    cri: Cri,
}

impl Kubelet {
    /// Starts one that talks to the CRI at `socket`. It keeps records of pulls if they exist already.
    pub(crate) fn start(socket: &Path, logs: &Path, root: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            cri: Cri::connect(socket, logs)?,
        })
    }

    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Makes the directory of kubelet, and that of its records if it keeps some.
    pub(crate) fn create_root(root: &Path, keeps_records: bool) -> Result<()> {
        fs::create_dir_all(root)?;
        if keeps_records {
            fs::create_dir_all(pulled(root))?;
        }
        Ok(())
    }

    /// Records that an image was pulled with a secret, if it keeps records.
    pub(crate) fn record(root: &Path, id: &str, image: &str, secret: Secret) -> Result<()> {
        if !pulled(root).exists() {
            return Ok(());
        }
        let repository = image.rsplit_once(':').map_or(image, |(name, _)| name);
        let user = secret.map(|(user, _)| json!({ "uid": user, "credentialHash": user }));
        let credentials = match user {
            Some(user) => json!({ "kubernetesSecrets": [user] }),
            None => json!({ "nodePodsAccessible": true }),
        };
        let record = json!({
            "kind": "ImagePulledRecord",
            "apiVersion": "kubelet.config.k8s.io/v1alpha1",
            "lastUpdatedTime": "2026-10-21T12:26:40Z",
            "imageRef": id,
            "credentialMapping": { repository: credentials },
        });
        Ok(fs::write(record_of(root, id), record.to_string())?)
    }

    /// Returns whether the credentials of a pod have to be verified by a pull (`MustAttemptImagePull`).
    fn must_pull(&self, id: &str, secret: Secret) -> Result<bool> {
        let Ok(record) = fs::read_to_string(record_of(&self.root, id)) else {
            return Ok(false);
        };
        let record: Value = serde_json::from_str(&record)?;
        let mapping = record["credentialMapping"]
            .as_object()
            .context("no mapping")?;
        let is_known = mapping.values().any(|credentials| {
            credentials["nodePodsAccessible"] == true
                || secret.is_some_and(|(user, _)| {
                    credentials["kubernetesSecrets"][0]["credentialHash"] == user
                })
        });
        Ok(!is_known)
    }

    /// Ensures that the image of a container exists, and returns its ID (`EnsureImageExists`).
    pub(crate) fn ensure_image(
        &self,
        sandbox: &Sandbox,
        image: &str,
        policy: Policy,
        secret: Secret,
    ) -> Result<String> {
        let present = self.cri.image_status(image, Some(sandbox))?;
        match (policy, present) {
            (Policy::Never, None) => bail!("ErrImageNeverPull"),
            (Policy::Never, Some(id)) => return Ok(id),
            (Policy::IfNotPresent, Some(id)) if !self.must_pull(&id, secret)? => return Ok(id),
            (Policy::IfNotPresent, _) => {}
        }
        let id = self.cri.pull_image(image, Some(sandbox), secret)?;
        Self::record(&self.root, &id, image, secret)?;
        // It asks for the size.
        let present = self.cri.image_status(image, Some(sandbox))?;
        ensure!(present.as_ref() == Some(&id), "{present:?} after the pull");
        Ok(id)
    }

    /// Runs a pod of one container to its end.
    pub(crate) fn run_pod(
        &self,
        handler: &str,
        name: &str,
        image: &str,
        policy: Policy,
        secret: Secret,
    ) -> Result<Exited> {
        let sandbox = self.cri.run_pod_sandbox(handler, name)?;
        let id = self.ensure_image(&sandbox, image, policy, secret)?;
        self.cri.run(&sandbox, name, &id, &[])
    }
}

fn pulled(root: &Path) -> PathBuf {
    root.join("image_manager/pulled")
}

fn record_of(root: &Path, id: &str) -> PathBuf {
    pulled(root).join(digest(id.as_bytes()).replace(':', "-"))
}
