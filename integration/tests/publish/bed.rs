// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layouts, and what is made of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use resnap_integration::debian::output;
use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{Built, Compression, Entry, ImageBuilder, Layer, digest, noise};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with layouts, keys and what is made of them.
pub(crate) struct Bed(pub(crate) TempDir);

/// The surroundings of a process.
pub(crate) struct Surroundings {
    zone: &'static str,
    umask: &'static str,
    cores: &'static str,
    user: &'static str,
}

pub(crate) const HERE: Surroundings = Surroundings {
    zone: "UTC",
    umask: "022",
    cores: "0,1",
    user: "0",
};

pub(crate) const ELSEWHERE: Surroundings = Surroundings {
    zone: "Asia/Kathmandu",
    umask: "077",
    cores: "0",
    user: "65534",
};

impl Bed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.path().join("config.toml"), "").unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a command in the directory, without the configuration of this machine.
    pub(crate) fn resnap(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(resnap());
        self.surround(&mut command);
        command.args(arguments);
        command
    }

    pub(crate) fn surround(&self, command: &mut Command) {
        command
            .current_dir(self.0.path())
            .env("RESNAP_CONFIG", self.path("config.toml"))
            .env_remove("CONTAINERD_ADDRESS");
    }

    /// Returns a command in other surroundings.
    pub(crate) fn resnap_in(&self, around: &Surroundings, arguments: &[&str]) -> Command {
        let Surroundings {
            zone,
            umask,
            cores,
            user,
        } = around;
        let script = format!("umask {umask} && exec \"$@\"");
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
            "taskset",
            "-c",
            cores,
        ]);
        command
            .args(["sh", "-c", &script, "sh"])
            .arg(resnap())
            .args(arguments);
        self.surround(&mut command);
        command.env("TZ", zone);
        command
    }

    /// Unpacks the archive of an image to a layout.
    pub(crate) fn layout(&self, image: &Built, name: &str) {
        let layout = self.path(name);
        fs::create_dir(&layout).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--no-same-owner", "-xf"])
            .arg(&image.archive)
            .arg("-C")
            .arg(&layout);
        output(&mut tar).unwrap();
    }

    pub(crate) fn keys(&self, name: &str) {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", &subject,
        ]);
        openssl.args([
            "-addext",
            "extendedKeyUsage=codeSigning",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
        output(openssl.current_dir(self.0.path())).unwrap();
    }
}

pub(crate) fn resnap() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("resnap");
    assert!(
        program.is_file(),
        "{program:?} is not built: run `make build`"
    );
    program
}

pub(crate) fn ok(mut command: Command) -> String {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

pub(crate) fn json(command: Command) -> Value {
    serde_json::from_str(&ok(command)).unwrap()
}

/// Checks that a command fails with 2 and a message that has these parts.
pub(crate) fn refused(mut command: Command, parts: &[&str]) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{command:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// Returns the digests of all files below a directory, by their paths.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let bytes = fs::read(&path).unwrap();
                    found.insert(path.strip_prefix(dir).unwrap().to_owned(), digest(&bytes));
                }
            }
        }
    }
    found
}

/// Returns the digests of all files but the lock of a cache.
pub(crate) fn without_lock(bed: &Bed) -> BTreeMap<PathBuf, String> {
    let mut all = files(bed.0.path());
    all.remove(Path::new("cache/.resnap-lock"));
    all
}

/// Returns an image with three layers: two whose directories are all stated, and one with a file in `etc`, which
/// it does not state and which has its own mode.
pub(crate) fn image(name: &str) -> Built {
    let layer = |entries: &[Entry]| Layer::new(&pack(entries).unwrap(), Compression::Gzip).unwrap();
    let base = layer(&[
        Entry::dir("etc").mode(0o700).owner(3, 4),
        Entry::file("etc/passwd", "root"),
        Entry::file("big", noise(1, 300_000)),
        Entry::hardlink("same", "big"),
    ]);
    let middle = layer(&[
        Entry::dir("srv"),
        Entry::file("srv/web", "1"),
        Entry::whiteout("same"),
    ]);
    let top = layer(&[Entry::file("etc/new", "2")]);
    let builder = ImageBuilder::new("docker.io/library/app:1").layers([base, middle, top]);
    builder
        .write(&std::env::temp_dir().join(format!("{name}-{}.tar", std::process::id())))
        .unwrap()
}
