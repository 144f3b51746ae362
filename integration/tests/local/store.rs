// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A store, the commands on it, and images for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use resnap_integration::debian::output;
use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{Built, Compression, Entry, ImageBuilder, Layer};
use serde_json::Value;
use tempfile::TempDir;

/// A store in a directory of its own.
pub(crate) struct Store(TempDir);

impl Store {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Returns a path beside the store.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().join("store")
    }

    pub(crate) fn resnap(&self, arguments: &[&str]) -> Command {
        let config = self.0.path().join("config.toml");
        fs::write(&config, "").unwrap();
        let mut command = Command::new(program("resnap"));
        // Not the configuration of this machine.
        command.env("RESNAP_CONFIG", config);
        command
            .args(["--engine", "local", "--root"])
            .arg(self.root());
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn unpack(&self, image: &str) -> Command {
        self.resnap(&["unpack", "--json", "--snapshotter", "erofs", image])
    }

    /// Checks that the images are ready and right, by all means that there are.
    pub(crate) fn is_ready(&self, image: &str) {
        for command in ["check", "verify"] {
            ok(self.resnap(&[command, "--snapshotter", "erofs", image]));
        }
    }

    /// Checks that the image is not ready.
    pub(crate) fn is_not_ready(&self, image: &str) {
        let mut check = self.resnap(&["check", "--snapshotter", "erofs", image]);
        assert_eq!(check.output().unwrap().status.code(), Some(1), "{image}");
    }

    /// Returns the manifest to which the name of an image leads.
    pub(crate) fn manifest(&self, image: &str) -> String {
        let check = ok(self.resnap(&["check", "--json", "--snapshotter", "erofs", image]));
        let check: Value = serde_json::from_str(&check).unwrap();
        check[0]["manifest"].as_str().unwrap().to_owned()
    }

    /// Returns the names of the images.
    pub(crate) fn images(&self) -> Vec<String> {
        let images = ok(self.resnap(&["images", "--json"]));
        let images: Vec<Value> = serde_json::from_str(&images).unwrap();
        let names = images
            .iter()
            .map(|row| row["image"].as_str().unwrap().to_owned());
        names.collect()
    }

    /// Checks that nothing is left but images with this number of layers.
    pub(crate) fn has_only(&self, layers: usize) {
        let leases = ok(self.resnap(&["leases", "--json"]));
        assert_eq!(
            serde_json::from_str::<Value>(&leases).unwrap(),
            Value::Array(Vec::new())
        );
        let root = self.root();
        let names = |path: &str| -> Vec<_> {
            let entries = fs::read_dir(root.join(path)).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names("erofs/snapshots").len(), layers);
        for directory in ["ingest", "erofs/removed", "erofs/.resnap"] {
            assert!(
                names(directory).is_empty(),
                "{directory}: {:?}",
                names(directory)
            );
        }
        let locks = names("run");
        assert!(locks.iter().all(|name| name == "documents"), "{locks:?}");
    }
}

/// Returns a program that is built beside the test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join(name);
    assert!(
        program.is_file(),
        "{program:?} is not built: run `make build`"
    );
    program
}

pub(crate) fn archive(image: &Built) -> String {
    format!("oci-archive:{}", image.archive.display())
}

/// Returns the output of a command that succeeds.
pub(crate) fn ok(mut command: Command) -> String {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// Returns how many layers a process wrote.
pub(crate) fn applied(unpacked: &str) -> usize {
    let report: Value = serde_json::from_str(unpacked.lines().last().unwrap()).unwrap();
    let layers = report["report"]["layers"].as_array().unwrap();
    layers
        .iter()
        .filter(|layer| layer["outcome"] == "applied")
        .count()
}

/// Returns what a command that fails said.
pub(crate) fn failed(mut command: Command) -> String {
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{command:?}: {ended:?}");
    String::from_utf8(ended.stderr).unwrap()
}

/// Checks that a text has all of these parts.
pub(crate) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// Writes an image with one file in each layer, of this text and the layer's number.
pub(crate) fn image(path: &Path, text: &str, layers: usize) -> Built {
    let layers = (1..=layers).map(|number| {
        let file = Entry::file(format!("file{number}"), format!("{text} {number}"));
        Layer::new(&pack(&[file])?, Compression::Gzip)
    });
    let layers: Vec<_> = layers.collect::<Result<_, _>>().unwrap();
    let image = ImageBuilder::new("docker.io/library/small:1").layers(layers);
    image.write(path).unwrap()
}

/// Unpacks the archive of an image to a layout, in the place of the one that is there.
pub(crate) fn layout(image: &Built, path: &Path) {
    // It may not be there.
    let _ = fs::remove_dir_all(path);
    fs::create_dir(path).unwrap();
    let mut tar = Command::new("tar");
    output(tar.arg("-xf").arg(&image.archive).arg("-C").arg(path)).unwrap();
}

/// Returns the file of a blob.
pub(crate) fn blob(layout: &Path, digest: &str) -> PathBuf {
    let (algorithm, encoded) = digest.split_once(':').unwrap();
    layout.join("blobs").join(algorithm).join(encoded)
}

/// Changes a byte in the middle of a file, in a copy in its place.
pub(crate) fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}
