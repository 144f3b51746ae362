// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! kubelet's records of the images that it has pulled (Kubernetes `pkg/kubelet/images/pullmanager`).
//!
//! kubelet 1.35 and later keep a file for each image ID, and give such an image only to pods whose
//! credentials have pulled it. An image without a record, which came to the node by other means, is for
//! all pods: a pull would make a record, and take it from them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use resnap_core::Digest;
use serde_json::Value;

/// The records below the directory of kubelet.
const PULLED: &str = "image_manager/pulled";

/// The largest record that is read. kubelet keeps at most a hundred secrets of a repository in one.
const MAX_RECORD: u64 = 1 << 20;

/// The directory of kubelet.
#[derive(Debug, Clone)]
pub(crate) struct KubeletRecords(PathBuf);

impl KubeletRecords {
    pub(crate) fn new(kubelet_root: &Path) -> Self {
        Self(kubelet_root.to_owned())
    }

    /// Returns whether another pull of an image takes it from no pod: kubelet has pulled it before, or
    /// keeps no records. Blocks.
    ///
    /// # Errors
    /// If that cannot be told.
    pub(crate) fn allow_pull(&self, image_id: &str) -> io::Result<bool> {
        let pulled = self.0.join(PULLED);
        let name = format!("sha256-{}", Digest::sha256(image_id.as_bytes()).encoded());
        match read(&pulled.join(name)) {
            Ok(record) => return Ok(record["imageRef"] == image_id),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match fs::metadata(&pulled) {
            Ok(_) => Ok(false),
            // Without its directory, kubelet is elsewhere, and so may be its records.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::metadata(&self.0).map(|found| found.is_dir())
            }
            Err(error) => Err(error),
        }
    }
}

fn read(path: &Path) -> io::Result<Value> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    let file = File::open(path)?;
    if file.take(MAX_RECORD + 1).read_to_string(&mut text)? as u64 > MAX_RECORD {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

    /// Returns a record as kubelet 1.35 writes it.
    fn record(image_id: &str) -> String {
        format!(
            r#"{{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1",
            "lastUpdatedTime":"2026-10-21T12:26:40Z","imageRef":"{image_id}","credentialMapping":
            {{"registry.example/web":{{"kubernetesSecrets":[{{"uid":"1","namespace":"default",
            "name":"pull-secret","credentialHash":"abc"}}]}}}}}}"#
        )
    }

    #[test]
    fn records_are_found_by_the_hash_of_the_image() {
        // A file of kubelet's own test data.
        let name = Digest::sha256(b"test-brokenhash");
        let kubelets = "38a8906435c4dd5f4258899d46621bfd8eea3ad6ff494ee3c2f17ef0321625bd";
        assert_eq!(name.encoded(), kubelets);
    }

    #[test]
    fn a_pull_is_allowed_by_a_record_of_the_image_or_without_any_records() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("kubelet");
        let records = KubeletRecords::new(&root);
        // There is no kubelet.
        records.allow_pull(ID).unwrap_err();
        fs::create_dir_all(&root).unwrap();
        assert!(records.allow_pull(ID).unwrap());
        let pulled = root.join(PULLED);
        fs::create_dir_all(&pulled).unwrap();
        assert!(!records.allow_pull(ID).unwrap());

        let file = pulled.join(format!(
            "sha256-{}",
            Digest::sha256(ID.as_bytes()).encoded()
        ));
        fs::write(&file, record(ID)).unwrap();
        assert!(records.allow_pull(ID).unwrap());
        assert!(!records.allow_pull("sha256:other").unwrap());
        fs::write(&file, record("sha256:other")).unwrap();
        assert!(!records.allow_pull(ID).unwrap());
        for unreadable in [
            "".to_owned(),
            "{".to_owned(),
            record(ID) + &" ".repeat(1 << 20),
        ] {
            fs::write(&file, unreadable).unwrap();
            records.allow_pull(ID).unwrap_err();
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        records.allow_pull(ID).unwrap_err();
    }
}
