// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The speed of `resnap convert`, next to `mkfs.erofs` and `cp`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use flate2::read::MultiGzDecoder;
use resnap_integration::debian::{output, provision};
use resnap_integration::image::{Built, digest, large_layer, small_files, web};
use serde_json::{Value, json};

use crate::setup::{Resnap, Setup, time};
use crate::table::{Row, Table};

const ROUNDS: usize = 3;

pub(crate) fn run(setup: &Setup) -> Result<Table> {
    let mut rows = Vec::new();
    for (name, image) in [
        ("small files", small_files()?),
        ("one large layer", large_layer()?),
        ("web", web()?),
    ] {
        rows.extend(image_rows(setup, name, &image)?);
    }
    Ok(Table {
        name: "convert",
        about: "Layers in an OCI layout as EROFS images in files, by `mkfs.erofs --tar=f`, one layer after\n\
                the other, and by `resnap convert`, which also verifies the diff IDs. From tars: the layers\n\
                are not compressed; there also by `cp` of the tars. Ratio: to `mkfs.erofs`."
            .to_owned(),
        containerd: setup.containerd.name(),
        cores: std::thread::available_parallelism()?.get(),
        rows,
    })
}

/// An image in a layout, and the files of its layers.
struct Layout {
    path: PathBuf,
    layers: Vec<PathBuf>,
}

fn image_rows(setup: &Setup, name: &str, image: &Built) -> Result<Vec<Row>> {
    let dir = setup.containerd.scratch().join("convert");
    fs::create_dir(&dir)?;
    let gzip = Layout::of(image, dir.join("gzip"))?;
    let tars = gzip.inflated(dir.join("tars"))?;
    let mut rows = Vec::new();
    for (form, layout, has_cp) in [("gzip", &gzip, false), ("tars", &tars, true)] {
        let label = |by: &str| format!("{name} from {form}: {by}");
        let (mut mkfs, mut cp) = (Vec::new(), Vec::new());
        let mut resnaps: Vec<_> = setup.resnaps().map(|resnap| (resnap, Vec::new())).collect();
        for _ in 0..ROUNDS {
            mkfs.push(layout.time(&dir, by_mkfs)?);
            if has_cp {
                cp.push(layout.time(&dir, by_cp)?);
            }
            for (resnap, samples) in &mut resnaps {
                samples.push(layout.convert(&dir, resnap, setup.containerd.socket())?);
            }
        }
        let mkfs = Row::timed(label("mkfs.erofs"), &mkfs);
        for (resnap, samples) in &resnaps {
            rows.push(Row::timed(resnap.row(&label("resnap")), samples).against(&mkfs));
        }
        if has_cp {
            rows.push(Row::timed(label("cp"), &cp).against(&mkfs));
        }
        rows.push(mkfs);
    }
    fs::remove_dir_all(&dir)?;
    Ok(rows)
}

impl Layout {
    fn of(image: &Built, path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        output(
            Command::new("tar")
                .arg("-xf")
                .arg(&image.archive)
                .arg("-C")
                .arg(&path),
        )?;
        let layers = image.layers.iter().map(|layer| blob(&path, &layer.digest));
        Ok(Self {
            layers: layers.collect(),
            path,
        })
    }

    /// Returns the same image with layers that are not compressed.
    fn inflated(&self, path: PathBuf) -> Result<Self> {
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let read = |path: &Path| -> Result<Value> {
            let bytes = fs::read(path).with_context(|| format!("{path:?}"))?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let mut index = read(&self.path.join("index.json"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut manifest = read(&blob(&self.path, &text(&index["manifests"][0]["digest"])))?;
        let config = text(&manifest["config"]["digest"]);
        fs::copy(blob(&self.path, &config), blob(&path, &config))?;
        let diff_ids = read(&blob(&path, &config))?["rootfs"]["diff_ids"].take();
        let mut layers = Vec::new();
        for (number, from) in self.layers.iter().enumerate() {
            let diff_id = text(&diff_ids[number]);
            let to = blob(&path, &diff_id);
            let mut tar = File::create(&to)?;
            let size = std::io::copy(&mut MultiGzDecoder::new(File::open(from)?), &mut tar)?;
            manifest["layers"][number] = json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size,
            });
            layers.push(to);
        }
        let bytes = manifest.to_string();
        let digest = digest(bytes.as_bytes());
        fs::write(blob(&path, &digest), &bytes)?;
        index["manifests"][0]["digest"] = json!(digest);
        index["manifests"][0]["size"] = json!(bytes.len());
        fs::write(path.join("index.json"), index.to_string())?;
        fs::copy(self.path.join("oci-layout"), path.join("oci-layout"))?;
        Ok(Self { path, layers })
    }

    /// Returns the time that a command takes for all layers, one after the other.
    fn time(&self, dir: &Path, command: fn(&Path, &Path) -> Result<Command>) -> Result<Duration> {
        let out = dir.join("out");
        fs::create_dir(&out)?;
        let mut total = Duration::ZERO;
        for (number, layer) in self.layers.iter().enumerate() {
            total += time(&mut command(layer, &out.join(number.to_string()))?)?;
        }
        fs::remove_dir_all(&out)?;
        Ok(total)
    }

    fn convert(&self, dir: &Path, resnap: &Resnap, socket: &Path) -> Result<Duration> {
        let out = dir.join("out");
        let mut convert = resnap.on(socket);
        convert
            .arg("convert")
            .arg(format!("oci:{}", self.path.display()))
            .arg(&out)
            .stdout(Stdio::null());
        let took = time(&mut convert)?;
        fs::remove_dir_all(&out)?;
        Ok(took)
    }
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn by_mkfs(layer: &Path, to: &Path) -> Result<Command> {
    let mkfs = provision()?.tools().join("mkfs.erofs");
    let mut command = Command::new("sh");
    // As containerd calls it (`internal/erofsutils`).
    let script = "{ case $(head -c 2 \"$1\" | od -An -tx1) in ' 1f 8b') gzip -dc \"$1\";; *) cat \"$1\";; esac; } |
exec \"$0\" --tar=f --aufs --quiet -Enoinline_data \"$2\" >/dev/null";
    command.args(["-c", script]).arg(mkfs).args([layer, to]);
    Ok(command)
}

fn by_cp(layer: &Path, to: &Path) -> Result<Command> {
    let mut command = Command::new("cp");
    command.args([layer, to]);
    Ok(command)
}
