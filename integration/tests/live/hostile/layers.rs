// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are broken, absurd or meant to harm, written by resnap itself: each becomes what it
//! says, or an error that names it; nothing is written elsewhere, and nothing stays.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flate2::write::GzEncoder;
use resnap_erofs::ErofsReader;
use resnap_integration::image::tar_entry::{self, Entry};
use resnap_integration::image::{Form, digest, forms};
use serde_json::Value;

use super::{Blobs, GZIP};
use crate::node::{Node, differ_config, unique};
use crate::suite::live_tests;

live_tests! {
    Alone: hostile_layers,
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const EROFS: &str = "application/vnd.erofs.layer.v1";

/// The limit of a layer's decompressed size.
const LIMIT: usize = 64 << 20;
/// The limit of the process's memory for all of these images at once. The sizes that headers claim and bombs
/// have are larger.
const MEMORY_KIB: u64 = 48 << 10;
const TIB: u64 = 1 << 40;
/// An overlay attribute that shows the files of another directory.
const REDIRECT: &str = "trusted.overlay.redirect";
const UP: &str = "../../../../../../../../../../../../../../../../../../../../";

/// A hostile layer.
struct Case {
    name: &'static str,
    media_type: &'static str,
    blob: Vec<u8>,
    diff_id: String,
    ends: Ends,
}

enum Ends {
    /// There is a file of this size, below the root.
    Well { path: String, size: u64 },
    /// The error has this kind, and says these words.
    Badly {
        kind: &'static str,
        says: Vec<String>,
    },
}

fn badly(kind: &'static str, says: &str) -> Ends {
    Ends::Badly {
        kind,
        says: vec![says.to_owned()],
    }
}

impl Case {
    fn tar(name: &'static str, entries: &[Entry], ends: Ends) -> Result<Self> {
        let blob = tar_entry::pack(entries)?;
        Ok(Self {
            name,
            media_type: TAR,
            diff_id: digest(&blob),
            blob,
            ends,
        })
    }

    fn reference(&self) -> String {
        format!("docker.io/library/hostile-{}:1", self.name)
    }
}

/// A directory outside of the snapshots that must not change.
struct Canary(PathBuf);

impl Canary {
    fn new(node: &Node) -> Result<Self> {
        let dir = node.containerd.scratch().join(unique("canary"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("secret"), "secret")?;
        Ok(Self(dir))
    }

    /// Returns the path without its first slash.
    fn below_root(&self, name: &str) -> String {
        let path = self.0.join(name).display().to_string();
        path.trim_start_matches('/').to_owned()
    }

    fn is_intact(&self) -> Result<()> {
        let names: Vec<_> = fs::read_dir(&self.0)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        ensure!(names == ["secret"], "there are {names:?}");
        let secret = self.0.join("secret");
        let (bytes, metadata) = (fs::read(&secret)?, fs::metadata(&secret)?);
        ensure!(bytes == b"secret" && metadata.nlink() == 1, "{metadata:?}");
        Ok(())
    }
}

/// Layers whose entries aim at the canary.
fn escapes(canary: &Canary) -> Result<Vec<Case>> {
    let absolute = |name: &str| canary.0.join(name).display().to_string();
    let (to, up) = (absolute(""), format!("{UP}{}", canary.below_root("")));
    let in_canary = |name: &str| Ends::Well {
        path: canary.below_root(name),
        size: 1,
    };
    let here = |path: &str| Ends::Well {
        path: path.to_owned(),
        size: 1,
    };
    let no_target = || badly("InvalidArgument", "its hard link's target");
    Ok(vec![
        Case::tar(
            "dots",
            &[Entry::file(format!("{up}dots"), "x")],
            in_canary("dots"),
        )?,
        Case::tar(
            "absolute",
            &[Entry::file(absolute("absolute"), "x")],
            in_canary("absolute"),
        )?,
        Case::tar(
            "link",
            &[Entry::symlink("out", &to), Entry::file("out/link", "x")],
            in_canary("link"),
        )?,
        Case::tar(
            "up",
            &[Entry::symlink("out", &up), Entry::file("out/up", "x")],
            in_canary("up"),
        )?,
        Case::tar(
            "swap",
            &[
                Entry::dir("d"),
                Entry::file("d/one", "x"),
                Entry::symlink("d", &to),
                Entry::file("d/swap", "x"),
            ],
            in_canary("swap"),
        )?,
        Case::tar(
            "instead",
            &[
                Entry::symlink("instead", absolute("secret")),
                Entry::file("instead", "x"),
            ],
            here("instead"),
        )?,
        Case::tar(
            "whiteouts",
            &[
                Entry::symlink("out", &to),
                Entry::whiteout("out/secret"),
                Entry::opaque("out"),
                Entry::file(format!("{up}.wh.secret"), ""),
                Entry::file("whiteouts", "x"),
            ],
            here("whiteouts"),
        )?,
        Case::tar(
            "attributes",
            &[Entry::file("attributes", "x").xattr(REDIRECT, "/etc")],
            here("attributes"),
        )?,
        Case::tar(
            "devices",
            &[
                Entry::char_device("null", 1, 3),
                Entry::block_device("disk", 8, 0),
                Entry::file("null", "x"),
                Entry::file("devices", "x"),
            ],
            here("devices"),
        )?,
        Case::tar(
            "hardlink",
            &[Entry::hardlink("hard", format!("{up}secret"))],
            no_target(),
        )?,
        Case::tar(
            "hardlink-through",
            &[
                Entry::symlink("out", &to),
                Entry::hardlink("hard", "out/secret"),
                Entry::file("hard", "x"),
            ],
            no_target(),
        )?,
    ])
}

/// Layers that claim or are a lot.
fn absurd() -> Result<Vec<Case>> {
    let mut map = format!("1\n{}\n1\n", TIB / 2).into_bytes();
    map.resize(512, 0);
    map.push(b'x');
    let sparse = Entry::file("packed", map)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "sparse")
        .pax("GNU.sparse.realsize", TIB.to_string());
    let well = Ends::Well {
        path: "sparse".to_owned(),
        size: TIB,
    };

    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    Entry::file("bomb", vec![0; LIMIT]).write(&mut encoder)?;
    tar_entry::end(&mut encoder)?;
    let bomb = encoder.finish()?;

    let mut header = tar_entry::pack(&[Entry::new(b'x', "pax"), Entry::file("file", "")])?;
    header[124..136].copy_from_slice(b"40000000000\0");
    header[148..156].fill(b' ');
    let sum: u64 = header[..512].iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(vec![
        Case::tar("sparse", &[sparse], well)?,
        Case {
            name: "bomb",
            media_type: GZIP,
            blob: bomb,
            diff_id: digest(b"nobody gets that far"),
            ends: Ends::Badly {
                kind: "ResourceExhausted",
                says: vec!["max_layer_bytes".to_owned(), LIMIT.to_string()],
            },
        },
        Case {
            name: "header",
            media_type: TAR,
            diff_id: digest(&header),
            blob: header,
            ends: badly("ResourceExhausted", "1048576 bytes of extension headers"),
        },
    ])
}

/// Layers that were whole.
fn damaged() -> Result<Vec<Case>> {
    let noise: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let tar = tar_entry::pack(&[Entry::file("noise", noise)])?;
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar)?;
    let packed = encoder.finish()?;
    let mut flipped = tar.clone();
    flipped[tar.len() / 2] ^= 1;
    // Their digests are those of the damaged bytes.
    let damaged = |name, media_type, blob: &[u8], kind, says: &str| Case {
        name,
        media_type,
        blob: blob.to_vec(),
        diff_id: digest(&tar),
        ends: badly(kind, says),
    };
    let (half, packed_half) = (&tar[..tar.len() / 2], &packed[..packed.len() / 2]);
    Ok(vec![
        damaged("cut", TAR, half, "InvalidArgument", "ends"),
        damaged(
            "cut-gzip",
            GZIP,
            packed_half,
            "InvalidArgument",
            "incomplete",
        ),
        damaged("flipped", TAR, &flipped, "DataLoss", &digest(&tar)),
    ])
}

/// Blobs that claim to be EROFS images.
fn images() -> Result<Vec<Case>> {
    let image = forms(&[Form::Erofs])?;
    let good = image.blob(&image.layers[1].digest)?;
    let mut flipped = good.clone();
    *flipped.last_mut().context("no image")? ^= 1;
    let mut nameless = good.clone();
    nameless[1024] ^= 1;
    let mut unknown = good.clone();
    unknown[1024 + 81] |= 0x80;
    let mut spread = good.clone();
    spread[1024 + 80] |= 8;
    spread[1024 + 86] = 1;
    // Whoever harms states the right diff IDs.
    let case = |name, blob: &[u8], diff_id: &[u8], says: &str| Case {
        name,
        media_type: EROFS,
        blob: blob.to_vec(),
        diff_id: digest(diff_id),
        ends: badly("InvalidArgument", says),
    };
    let cut = &good[..good.len() - 512];
    let message = Ends::Well {
        path: "etc/message".to_owned(),
        size: "erofs\n".len() as u64,
    };
    Ok(vec![
        Case {
            ends: message,
            ..case("image", &good, &good, "")
        },
        case("image-cut", cut, cut, "is an EROFS image of"),
        case("image-short", b"short", b"short", "not an EROFS image"),
        case("image-nameless", &nameless, &nameless, "not an EROFS image"),
        Case {
            ends: badly("Unimplemented", "features that are not known: 0x8000"),
            ..case("image-features", &unknown, &unknown, "")
        },
        case("image-devices", &spread, &spread, "data on 1 other devices"),
        Case {
            ends: badly("DataLoss", &digest(&good)),
            ..case("image-flipped", &flipped, &good, "")
        },
    ])
}

fn hostile_layers(node: &Node) -> Result<()> {
    let canary = Canary::new(node)?;
    let mut cases = escapes(&canary)?;
    cases.extend(absurd()?);
    cases.extend(damaged()?);
    import(node, &cases)?;
    for snapshotter in node.targets() {
        harms_nobody(node, snapshotter, &cases)
            .and_then(|()| canary.is_intact())
            .with_context(|| format!("on {snapshotter}"))?;
    }
    if node.containerd.has_erofs() {
        let cases = images()?;
        import(node, &cases)?;
        harms_nobody(node, "erofs", &cases)?;
    }
    Ok(())
}

fn import(node: &Node, cases: &[Case]) -> Result<()> {
    let mut blobs = Blobs::default();
    let below = tar_entry::pack(&[Entry::dir("./"), Entry::file("below", "")])?;
    let lower = blobs.add(TAR, below.clone());
    let mut targets = Vec::new();
    for case in cases {
        let layer = blobs.add(case.media_type, case.blob.clone());
        let (mut layers, mut diff_ids) = (vec![layer], vec![case.diff_id.clone()]);
        // Good layers are kept for the next try.
        if let Ends::Well { .. } = case.ends {
            layers.insert(0, lower.clone());
            diff_ids.insert(0, digest(&below));
        }
        targets.push((case.reference(), blobs.add_image(&layers, &diff_ids)));
    }
    blobs.import_all(node, targets)
}

/// Unpacks all at once, and looks at what they became and left.
fn harms_nobody(node: &Node, snapshotter: &str, cases: &[Case]) -> Result<()> {
    let config = format!("max_layer_bytes = {LIMIT}\n{}", differ_config("resnap"));
    let mut command = node.configured_command(&config)?;
    command
        .args(["unpack", "--json", "--snapshotter", snapshotter])
        .args(cases.iter().map(Case::reference));
    let (told, peak) = measured(node, &mut command)?;
    ensure!(peak < MEMORY_KIB, "it took {peak} KiB");
    let errors: Vec<Value> = told
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let root = node.snapshotter_root(snapshotter);
    for case in cases {
        let reference = case.reference();
        let error = errors
            .iter()
            .map(|line: &Value| &line["error"])
            .find(|error| error["image"] == reference.as_str());
        match (&case.ends, error) {
            (Ends::Well { path, size }, None) => has(&root, path, *size),
            (Ends::Badly { kind, says }, Some(error)) => says_so(case, error, kind, says),
            (Ends::Well { .. }, Some(error)) => Err(anyhow::anyhow!("{error}")),
            (Ends::Badly { .. }, None) => Err(anyhow::anyhow!("no error: {told}")),
        }
        .with_context(|| case.name)?;
    }
    node.assert_nothing_left(snapshotter)?;
    let staged = node.staged(snapshotter)?;
    ensure!(staged.is_empty(), "{staged:?} are left");
    // It is this that removes directories.
    node.collect_garbage()?;
    let kept = node.snapshots(snapshotter)?.len();
    let on_disk = fs::read_dir(root.join("snapshots"))?.count();
    ensure!(kept == on_disk, "{kept} snapshots in {on_disk} directories");
    Ok(())
}

/// Returns the standard output of a command and the most memory that it was seen to take, in KiB.
fn measured(node: &Node, command: &mut Command) -> Result<(String, u64)> {
    let out = node.containerd.scratch().join(unique("told"));
    let mut child = command
        .stdout(File::create(&out)?)
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        peak = number.map_or(Ok(peak), str::parse)?;
        std::thread::sleep(Duration::from_millis(3));
    }
    ensure!(peak > 0, "it was never seen");
    Ok((fs::read_to_string(out)?, peak))
}

fn says_so(case: &Case, error: &Value, kind: &str, says: &[String]) -> Result<()> {
    ensure!(error["kind"] == kind, "want {kind}: {error}");
    let message = error["message"].as_str().unwrap_or_default();
    let (image, layer) = (case.reference(), digest(&case.blob));
    for word in [&image, &layer].into_iter().chain(says) {
        ensure!(message.contains(&**word), "does not say {word:?}: {error}");
    }
    Ok(())
}

/// Checks that a snapshot has a file at `path` that takes little space.
fn has(root: &Path, path: &str, size: u64) -> Result<()> {
    for snapshot in fs::read_dir(root.join("snapshots"))? {
        let snapshot = snapshot?.path();
        let image = snapshot.join("layer.erofs");
        let file = match image.exists() {
            true => image,
            false => {
                let below = [snapshot.join("fs"), snapshot];
                let mut files = below.map(|dir| dir.join(path)).into_iter();
                match files.find(|file| file.symlink_metadata().is_ok()) {
                    Some(file) => file,
                    None => continue,
                }
            }
        };
        let metadata = file.symlink_metadata()?;
        let (found, redirects) = match file.ends_with("layer.erofs") {
            true => {
                let image = ErofsReader::open(File::open(&file)?)?;
                let Some(node) = image.lookup(path.as_bytes())? else {
                    continue;
                };
                let xattrs = image.metadata(&node)?.xattrs;
                let mut names = xattrs.iter().map(|xattr| &xattr.name[..]);
                (node.size, names.any(|name| name == REDIRECT.as_bytes()))
            }
            false => {
                let redirect = rustix::fs::lgetxattr(&file, REDIRECT, &mut [0; 64][..]);
                (metadata.size(), redirect.is_ok())
            }
        };
        ensure!(!redirects, "{path} in {file:?} redirects overlayfs");
        ensure!(found == size, "{path} in {file:?} has {found} bytes");
        let room = metadata.blocks() * 512;
        ensure!(room < 1 << 20, "{file:?} takes {room} bytes");
        return Ok(());
    }
    anyhow::bail!("no snapshot has {path}")
}
