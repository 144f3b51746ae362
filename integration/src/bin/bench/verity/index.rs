// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The speed of indexes of tars, next to `mkfs.erofs --tar=i`.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flate2::read::MultiGzDecoder;
use resnap_erofs::{Memory, NoLower, Writer};
use resnap_integration::debian::provision;
use resnap_integration::image::Built;
use resnap_layer::Layer;

use crate::setup::{Setup, images};
use crate::table::Row;

const ROUNDS: usize = 3;

const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

pub(super) fn rows(setup: &Setup) -> Result<Vec<Row>> {
    let dir = setup.containerd.scratch().join("tars");
    fs::create_dir(&dir)?;
    let mut rows = Vec::new();
    for (name, image) in &images()? {
        let tars = tars(&dir, image)?;
        let (mut mkfs, mut resnap, mut reading) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mkfs.push(time(&dir, &tars, by_mkfs)?);
            resnap.push(time(&dir, &tars, by_resnap)?);
            reading.push(time(&dir, &tars, by_nobody)?);
        }
        let mkfs = Row::timed(format!("index of {name}: mkfs.erofs"), &mkfs);
        let resnap = Row::timed(format!("index of {name}: resnap"), &resnap).against(&mkfs);
        let reading = Row::timed(format!("reading the tars of {name}"), &reading).against(&mkfs);
        rows.extend([mkfs, resnap, reading]);
        tars.iter().try_for_each(fs::remove_file)?;
    }
    fs::remove_dir_all(&dir)?;
    Ok(rows)
}

/// Writes the tars of an image's layers.
fn tars(dir: &Path, image: &Built) -> Result<Vec<PathBuf>> {
    let layers = image.layers.iter().enumerate();
    let tars = layers.map(|(index, layer)| {
        let path = dir.join(format!("{index}.tar"));
        let blob = image.blob(&layer.digest)?;
        let mut file = File::create(&path)?;
        match blob.starts_with(&[0x1f, 0x8b]) {
            true => std::io::copy(&mut MultiGzDecoder::new(&blob[..]), &mut file)?,
            false => std::io::copy(&mut &blob[..], &mut file)?,
        };
        Ok(path)
    });
    tars.collect()
}

fn time(dir: &Path, tars: &[PathBuf], write: fn(&Path, &Path) -> Result<()>) -> Result<Duration> {
    let index = dir.join("index");
    let mut total = Duration::ZERO;
    for tar in tars {
        // Into memory, as is the rest.
        std::io::copy(&mut File::open(tar)?, &mut std::io::sink())?;
        let begin = Instant::now();
        write(tar, &index)?;
        total += begin.elapsed();
        fs::remove_file(&index)?;
    }
    Ok(total)
}

fn by_mkfs(tar: &Path, index: &Path) -> Result<()> {
    let program = provision()?.tools().join("mkfs.erofs");
    let status = Command::new(program)
        .args(["--tar=i", "--aufs", "--quiet", "-U", UUID])
        .args([index, tar])
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "mkfs.erofs: {status}");
    Ok(())
}

/// Only reads the tar. Whoever checks its diff ID, or hashes the device, has to; `mkfs.erofs` seeks over the data.
fn by_nobody(tar: &Path, index: &Path) -> Result<()> {
    let mut file = File::open(tar)?;
    let mut buffer = vec![0; 256 * 1024];
    while file.read(&mut buffer)? > 0 {}
    fs::write(index, "").context("create the index")
}

fn by_resnap(tar: &Path, index: &Path) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(index)
        .context("create the index")?;
    let mut writer = Writer::new(file, Box::new(Memory::new(1 << 30)))?.index();
    let reader = BufReader::with_capacity(256 * 1024, File::open(tar)?);
    let mut layer = Layer::new(reader, Default::default());
    writer.add(&mut layer)?;
    let mut rest = layer.finish()?;
    ensure!(rest.read(&mut [0])? == 0, "the tar has more");
    writer.finish(&mut NoLower, [1; 16])?;
    Ok(())
}
