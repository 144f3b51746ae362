// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap convert`, `artifacts` and `cache`, on layouts and directories. No containerd runs.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use resnap_integration::debian::output;
use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{
    Built, Compression, Entry, Fault, ImageBuilder, Layer, digest, many, noise,
};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with layouts, keys and what is made of them.
struct Bed(TempDir);

/// The surroundings of a process.
struct Surroundings {
    zone: &'static str,
    umask: &'static str,
    cores: &'static str,
    user: &'static str,
}

const HERE: Surroundings = Surroundings {
    zone: "UTC",
    umask: "022",
    cores: "0,1",
    user: "0",
};

const ELSEWHERE: Surroundings = Surroundings {
    zone: "Asia/Kathmandu",
    umask: "077",
    cores: "0",
    user: "65534",
};

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.path().join("config.toml"), "").unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a command in the directory, without the configuration and the containerd of this machine.
    fn resnap(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(resnap());
        self.surround(&mut command);
        command.args(arguments);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .current_dir(self.0.path())
            .env("RESNAP_CONFIG", self.path("config.toml"))
            .env("CONTAINERD_ADDRESS", self.path("no-containerd.sock"));
    }

    /// Returns a command in other surroundings.
    fn resnap_in(&self, around: &Surroundings, arguments: &[&str]) -> Command {
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
    fn layout(&self, image: &Built, name: &str) {
        let layout = self.path(name);
        fs::create_dir(&layout).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--no-same-owner", "-xf"])
            .arg(&image.archive)
            .arg("-C")
            .arg(&layout);
        output(&mut tar).unwrap();
    }

    fn keys(&self, name: &str) {
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

fn resnap() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("resnap");
    assert!(
        program.is_file(),
        "{program:?} is not built: run `make build`"
    );
    program
}

fn ok(mut command: Command) -> String {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

fn json(command: Command) -> Value {
    serde_json::from_str(&ok(command)).unwrap()
}

/// Checks that a command fails with 2 and a message that has these parts.
fn refused(mut command: Command, parts: &[&str]) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{command:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// Returns the digests of all files below a directory, by their paths.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
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
fn without_lock(bed: &Bed) -> BTreeMap<PathBuf, String> {
    let mut all = files(bed.0.path());
    all.remove(Path::new("cache/.resnap-lock"));
    all
}

/// Returns an image with three layers: two whose directories are all stated, and one with a file in `etc`, which
/// it does not state and which has its own mode.
fn image(name: &str) -> Built {
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

#[test]
fn the_same_image_gives_the_same_bytes_everywhere() {
    let image = image("same");
    let make = |around: &Surroundings| {
        let bed = Bed::new();
        bed.layout(&image, "app");
        let name = format!("oci:{}", bed.path("app").display());
        let run = |arguments: &[&str]| ok(bed.resnap_in(around, arguments));
        run(&["convert", "--verity", &name, "layers"]);
        run(&["convert", "--verity", "--merge", &name, "merged.erofs"]);
        run(&["convert", &name, "oci:native:1"]);
        run(&[
            "convert",
            "--verity",
            "--format",
            "vnd.erofs+zstd",
            "--oldest-containerd",
            "2.3",
            &name,
            "oci:draft:1",
        ]);
        run(&["artifacts", "build", &name, "--to", "oci:artifacts:1"]);
        run(&[
            "artifacts",
            "build",
            &name,
            "--to",
            "oci:notary:1",
            "--set",
            "notary",
        ]);
        run(&["cache", "build", "--verity", &name, "cache"]);
        let mut all = files(bed.0.path());
        all.retain(|path, _| !path.starts_with("app") && !path.starts_with("config.toml"));
        all
    };
    let (here, elsewhere) = (make(&HERE), make(&ELSEWHERE));
    assert!(here.len() > 30, "{here:?}");
    assert_eq!(here, elsewhere);
}

#[test]
fn images_become_files_that_are_complete_or_none() {
    let bed = Bed::new();
    bed.layout(&image("files"), "app");
    let converted = json(bed.resnap(&["convert", "--json", "--verity", "oci:app", "out"]));
    let listed = converted["files"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    for file in listed {
        let path = Path::new(file["path"].as_str().unwrap());
        assert_eq!(path.metadata().unwrap().len(), file["size"]);
        let sidecar = fs::read(format!("{}.dmverity", path.display())).unwrap();
        let sidecar: Value = serde_json::from_slice(&sidecar).unwrap();
        assert_eq!(sidecar["roothash"], file["verity"]["root_hash"]);
        assert_eq!(sidecar["hashoffset"], file["verity"]["hash_offset"]);
    }
    // The table is that of a device which the kernel's own tool verifies.
    let table = listed[0]["verity"]["table"].as_str().unwrap();
    let parts: Vec<_> = table.split(' ').collect();
    assert_eq!(
        parts[2..7],
        ["verity", "1", "DEVICE", "DEVICE", "4096"],
        "{table}"
    );

    let before = files(bed.0.path());
    refused(
        bed.resnap(&["convert", "oci:app", "out"]),
        &["out", "not empty"],
    );
    refused(
        bed.resnap(&["convert", "oci:app:2", "other"]),
        &["no image 2", "there are: "],
    );
    let foreign = bed.resnap(&["convert", "--platform", "linux/s390x", "oci:app", "other"]);
    refused(foreign, &["no manifest for linux/s390x", "linux/"]);
    let old = bed.resnap(&[
        "convert",
        "--format",
        "vnd.erofs.layer.v1+zstd",
        "oci:app",
        "oci:other:1",
    ]);
    refused(old, &["2.3", "--oldest-containerd"]);
    assert_eq!(files(bed.0.path()), before);

    for (name, fault, reason) in [
        ("wrong", Fault::WrongDiffId(1), "and the config says"),
        ("lost", Fault::MissingBlob(2), "no archive in"),
    ] {
        let layers = (1..=3).map(|seed| {
            let file = Entry::file(format!("file{seed}"), noise(seed, 100_000));
            Layer::new(&pack(&[file]).unwrap(), Compression::Gzip).unwrap()
        });
        let faulty = ImageBuilder::new("docker.io/library/faulty:1")
            .layers(layers)
            .fault(fault);
        let archive = bed.path(&format!("{name}.tar"));
        faulty.write(&archive).unwrap();
        let before = without_lock(&bed);
        let name = format!("oci-archive:{}", archive.display());
        refused(bed.resnap(&["convert", &name, "faulty"]), &[reason]);
        refused(
            bed.resnap(&["convert", "--merge", &name, "faulty.erofs"]),
            &[reason],
        );
        refused(bed.resnap(&["cache", "build", &name, "cache"]), &[reason]);
        assert_eq!(without_lock(&bed), before);
    }
}

#[test]
fn native_layers_stand_behind_the_plain_ones() {
    let bed = Bed::new();
    let image = image("native");
    bed.layout(&image, "app");
    let first = json(bed.resnap(&["convert", "--json", "oci:app", "oci:native:1"]));
    // A second run replaces what the first has made.
    let again = json(bed.resnap(&["convert", "--json", "oci:native:1", "oci:native:1"]));
    assert_eq!(again["index"], first["index"]);
    let blob = |layout: &str, digest: &str| -> Value {
        let path = bed
            .path(layout)
            .join("blobs")
            .join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let index = blob("native", first["index"].as_str().unwrap());
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2);
    assert_eq!(manifests[0]["digest"], image.manifest.as_str());
    assert_eq!(
        manifests[1]["platform"]["os.features"],
        serde_json::json!(["erofs"])
    );
    let manifest = blob("native", manifests[1]["digest"].as_str().unwrap());
    let config = blob("native", manifest["config"]["digest"].as_str().unwrap());
    assert_eq!(config["os.features"], serde_json::json!(["erofs"]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    for (layer, diff_id) in layers
        .iter()
        .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
    {
        assert_eq!(layer["mediaType"], "application/vnd.erofs.layer.v1");
        assert_eq!(layer["digest"], *diff_id);
    }
    // What is written is what is read: the same trees come out of the native layers.
    let platform = format!("linux(+erofs)/{}", config["architecture"].as_str().unwrap());
    ok(bed.resnap(&["convert", "--merge", "oci:app", "plain.erofs"]));
    ok(bed.resnap(&[
        "convert",
        "--merge",
        "--platform",
        &platform,
        "oci:native:1",
        "native.erofs",
    ]));
    let merged = |name: &str| fs::read(bed.path(name)).unwrap().len();
    assert_eq!(merged("plain.erofs"), merged("native.erofs"));
}

#[test]
fn caches_have_layers_that_need_no_others() {
    let bed = Bed::new();
    let image = image("cache");
    bed.layout(&image, "app");
    let built = json(bed.resnap(&["cache", "build", "--json", "oci:app", "cache"]));
    let outcomes: Vec<_> = built
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["outcome"])
        .collect();
    assert_eq!(outcomes, ["written", "written", "needs_parents"]);
    assert_eq!(built[2]["directory"], "/etc");
    let cached = |number: usize| PathBuf::from(built[number]["path"].as_str().unwrap());
    assert!(cached(0).is_file() && cached(1).is_file() && !cached(2).exists());
    let hex = image.layers[0].diff_id.trim_start_matches("sha256:");
    let place = bed
        .path("cache")
        .join("sha256")
        .join(&hex[..2])
        .join(format!("{hex}.erofs"));
    assert_eq!(cached(0), place);
    assert_eq!(
        place.metadata().unwrap().permissions().mode() & 0o777,
        0o644
    );

    let again = json(bed.resnap(&["cache", "build", "--json", "oci:app", "cache"]));
    assert_eq!(again[0]["outcome"], "existed");
    // Without a tree it would not be mounted by those who want one.
    let sealed = json(bed.resnap(&["cache", "build", "--json", "--verity", "oci:app", "cache"]));
    assert_eq!(sealed[0]["outcome"], "written");
    assert!(
        bed.path("cache")
            .join(format!("sha256/{}/{hex}.erofs.dmverity", &hex[..2]))
            .is_file()
    );

    fs::write(bed.path("keep"), format!("# the base\nsha256:{hex}\n")).unwrap();
    let prune = ["cache", "prune", "--json", "cache", "--keep", "keep"];
    let listed = json(bed.resnap(&prune));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(cached(1).is_file());
    ok(bed.resnap(&[&prune[..], &["--remove"]].concat()));
    assert!(cached(0).is_file() && !cached(1).exists());
    assert!(!Path::new(&format!("{}.dmverity", cached(1).display())).exists());
    fs::write(bed.path("keep"), "web:1\n").unwrap();
    refused(bed.resnap(&prune), &["line 1", "web:1"]);
}

#[test]
fn caches_are_built_and_pruned_at_once() {
    let bed = Bed::new();
    let images = [many(3).unwrap(), image("at-once")];
    let names = images.map(|image| format!("oci-archive:{}", image.archive.display()));
    fs::write(bed.path("keep"), "").unwrap();
    ok(bed.resnap(&["cache", "build", &names[0], "whole", "--verity"]));
    ok(bed.resnap(&["cache", "build", &names[1], "whole", "--verity"]));
    let whole = files(&bed.path("whole"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let builders: Vec<_> = names
            .iter()
            .map(|name| {
                let build = || ok(bed.resnap(&["cache", "build", name, "cache", "--verity"]));
                scope.spawn(move || (0..5).for_each(|_| _ = build()))
            })
            .collect();
        let pruner = scope.spawn(|| {
            let mut removed = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut prune =
                    bed.resnap(&["cache", "prune", "cache", "--keep", "keep", "--remove"]);
                // It is refused while a builder works.
                removed += i32::from(prune.output().unwrap().status.success());
            }
            removed
        });
        // A reader finds a layer complete, with its sidecar, or does not find it.
        while builders.iter().any(|builder| !builder.is_finished()) {
            let Ok(entries) = fs::read_dir(bed.path("cache").join("sha256")) else {
                continue;
            };
            for shard in entries.flatten() {
                for entry in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path
                        .extension()
                        .is_some_and(|extension| extension == "erofs")
                    {
                        let sidecar = format!("{}.dmverity", path.display());
                        let (read, sidecar) = (fs::read(&path), Path::new(&sidecar).exists());
                        let name = path.strip_prefix(bed.path("cache")).unwrap();
                        if let Ok(bytes) = read {
                            assert_eq!(whole[name], digest(&bytes));
                            assert!(sidecar || !path.exists(), "{path:?} has no sidecar");
                        }
                    }
                }
            }
        }
        builders
            .into_iter()
            .for_each(|builder| builder.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        pruner.join().unwrap();
    });
    for name in &names {
        ok(bed.resnap(&["cache", "build", name, "cache", "--verity"]));
    }
    assert_eq!(files(&bed.path("cache")), whole);
}

#[test]
fn signed_artifacts_are_accepted_by_those_who_trust_the_signer() {
    let bed = Bed::new();
    bed.layout(&image("signed"), "app");
    bed.keys("publisher");
    bed.keys("stranger");
    let sign = |arguments: &[&str]| {
        bed.resnap(
            &[
                &[
                    "artifacts",
                    "sign",
                    "--json",
                    "oci:app:docker.io/library/app:1",
                ],
                arguments,
            ]
            .concat(),
        )
    };
    let verify = |signer: &str| {
        let signer = format!("{signer}.pem");
        bed.resnap(&[
            "artifacts",
            "verify",
            "oci:app:docker.io/library/app:1",
            "--signer",
            &signer,
        ])
    };
    let build = [
        "artifacts",
        "build",
        "oci:app:docker.io/library/app:1",
        "--set",
    ];
    refused(
        sign(&["--key", "publisher.key", "--certificate", "publisher.pem"]),
        &["artifacts build"],
    );
    for set in ["containerd", "notary"] {
        ok(bed.resnap(&[&build[..], &[set]].concat()));
        let other = sign(&["--key", "stranger.key", "--certificate", "publisher.pem"]);
        refused(other, &["CN=publisher"]);
        let signed = json(sign(&[
            "--key",
            "publisher.key",
            "--certificate",
            "publisher.pem",
        ]));
        assert_eq!(signed[0]["root_hashes"].as_object().unwrap().len(), 3);
        let shown = ok(verify("publisher"));
        assert_eq!(shown.matches("CN=publisher").count(), 3, "{shown}");
        refused(verify("stranger"), &["has no signature", "publisher"]);
        // The same artifact, by a command that has the key.
        let command = "openssl dgst -sha256 -sign publisher.key";
        let by_command = json(sign(&[
            "--sign-command",
            command,
            "--certificate",
            "publisher.pem",
        ]));
        assert_eq!(by_command, signed);
        let command = "cat >root; openssl smime -sign -noattr -binary -in root -inkey publisher.key -signer publisher.pem -outform der";
        let wrapped = [
            "--sign-command",
            command,
            "--sign-output",
            "pkcs7",
            "--certificate",
        ];
        json(sign(&[&wrapped[..], &["publisher.pem"]].concat()));
        ok(verify("publisher"));
        refused(
            sign(&[&wrapped[..], &["stranger.pem"]].concat()),
            &["sign the root hash"],
        );
        refused(
            sign(&["--sign-command", "exit 7", "--certificate", "publisher.pem"]),
            &["exit 7", "exit status: 7"],
        );
        ok(sign(&[
            "--key",
            "publisher.key",
            "--certificate",
            "publisher.pem",
        ]));

        let copy = format!("copy-{set}");
        ok(bed.resnap(&[
            "convert",
            "oci:app:docker.io/library/app:1",
            &format!("oci:{copy}:1"),
        ]));
        let to = format!("oci:{copy}:1");
        let push = ["artifacts", "push", "oci:app:docker.io/library/app:1", &to];
        ok(bed.resnap(&push));
        ok(bed.resnap(&["artifacts", "verify", &to, "--signer", "publisher.pem"]));
        ok(sign(&[
            "--key",
            "stranger.key",
            "--certificate",
            "stranger.pem",
        ]));
        refused(bed.resnap(&push), &["--replace"]);
        ok(bed.resnap(&[&push[..], &["--replace"]].concat()));
        refused(
            bed.resnap(&["artifacts", "verify", &to, "--signer", "publisher.pem"]),
            &["CN=stranger"],
        );
        ok(bed.resnap(&["artifacts", "verify", &to, "--signer", "stranger.pem"]));
    }
}
