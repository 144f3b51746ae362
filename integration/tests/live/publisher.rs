// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A publisher of images, who signs their layers.

use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use flate2::read::MultiGzDecoder;
use resnap_core::Digest;
use resnap_erofs::{Memory, NoLower, Writer};
use resnap_integration::debian::{output, provision};
use resnap_integration::image::{ArtifactNames, Built, LayerPayloads};
use resnap_layer::Layer;
use resnap_verity::{BlockSize, Work, append};

use crate::node::{Node, unique};

/// A publisher of artifacts.
pub(crate) struct Publisher {
    pub(crate) dir: PathBuf,
}

impl Publisher {
    pub(crate) fn new(node: &Node, name: &str) -> Result<Self> {
        Self::valid(node, name, &["-days", "30"])
    }

    /// Returns a publisher whose certificate has expired.
    pub(crate) fn expired(node: &Node, name: &str) -> Result<Self> {
        let dates = [
            "-not_before",
            "20200101000000Z",
            "-not_after",
            "20210101000000Z",
        ];
        Self::valid(node, name, &dates)
    }

    fn valid(node: &Node, name: &str, dates: &[&str]) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique(name));
        fs::create_dir(&dir)?;
        let publisher = Self { dir };
        let subject = format!("/CN={name}");
        let purpose = "extendedKeyUsage=codeSigning";
        let certificate = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out",
            "cert.pem", "-subj", &subject, "-addext", purpose,
        ];
        publisher.openssl(&[&certificate, dates].concat())?;
        Ok(publisher)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String> {
        let program = provision()?.tools().join("openssl");
        output(Command::new(program).args(arguments).current_dir(&self.dir))
    }

    pub(crate) fn sign(&self, root_hash: &str) -> Result<Vec<u8>> {
        let name = unique("root");
        fs::write(self.dir.join(&name), root_hash)?;
        self.openssl(&[
            "smime",
            "-sign",
            "-noattr",
            "-binary",
            "-in",
            &name,
            "-inkey",
            "key.pem",
            "-signer",
            "cert.pem",
            "-outform",
            "der",
            "-out",
            "signature",
        ])?;
        Ok(fs::read(self.dir.join("signature"))?)
    }

    /// Returns the payloads of all layers of an image.
    pub(crate) fn payloads(
        &self,
        image: &Built,
        names: ArtifactNames,
    ) -> Result<Vec<LayerPayloads>> {
        self.payloads_of(image, names, |_| Ok(()))
    }

    /// Returns the payloads of all layers of an image. The indexes are those of other tars, which `change` makes
    /// of the layers', and which have the same size.
    pub(crate) fn payloads_of(
        &self,
        image: &Built,
        names: ArtifactNames,
        change: impl Fn(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<LayerPayloads>> {
        let multiple = match names {
            ArtifactNames::Containerd => 4096,
            ArtifactNames::Notary => 512,
        };
        let layers = image.layers.iter().enumerate().map(|(number, layer)| {
            let blob = image.blob(&layer.digest)?;
            // Other tests share the content of their containerd, and publish the same image.
            let name = Digest::sha256(format!("{:?} {number}", self.dir).as_bytes()).to_string();
            let uuid: [u8; 16] = name.as_bytes()[10..26].try_into()?;
            let is_image = blob.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0][..]);
            let (index, device, block) = if is_image {
                (Vec::new(), blob, BlockSize::B4096)
            } else {
                let mut tar = Vec::new();
                match blob.starts_with(&[0x1f, 0x8b]) {
                    true => _ = MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar)?,
                    false => tar = blob,
                }
                let mut changed = tar.clone();
                change(&mut changed)?;
                let index = index(&changed, number == 0, uuid)?;
                let mut device = [index.clone(), tar].concat();
                device.resize(device.len().next_multiple_of(multiple), 0);
                (index, device, BlockSize::B512)
            };
            let mut file = tempfile::tempfile()?;
            file.write_all(&device)?;
            let (size, check) = (device.len() as u64, || Ok(()));
            let tree = append(&file, size, block, uuid, None, Work::new(&check))?;
            let root_hash = tree.root_hash.to_string();
            Ok(LayerPayloads {
                layer: layer.digest.clone(),
                index,
                tree: vec![0; 512],
                signature: self.sign(&root_hash)?,
                root_hash,
            })
        });
        layers.collect()
    }

    /// Returns a configuration that needs signatures of this publisher.
    pub(crate) fn config(&self, more: &str) -> String {
        let certificate = self.dir.join("cert.pem");
        format!(
            "sources.order = [\"archive\", \"registry\"]\n\
             snapshotters.erofs.integrity = \"signed\"\n\
             integrity.signers = [{certificate:?}]\n{more}"
        )
    }
}

/// Returns the index of a tar.
fn index(tar: &[u8], is_lowest: bool, uuid: [u8; 16]) -> Result<Vec<u8>> {
    let mut writer = Writer::new(Cursor::new(Vec::new()), Box::new(Memory::new(1 << 26)))?;
    if is_lowest {
        writer = writer.lowest();
    }
    let mut writer = writer.index();
    writer.add(&mut Layer::new(tar, Default::default()))?;
    Ok(writer.finish(&mut NoLower, uuid)?.0.into_inner())
}
