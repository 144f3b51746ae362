// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The demo of the local engine, as any user and without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::tar_entry::pack;
use resnap_integration::image::{Compression, Entry, ImageBuilder, Layer};

use crate::leftovers;
use crate::steps::{run, say, seconds};

/// Shows the local engine, and says why.
pub(crate) fn play(reason: &anyhow::Error) -> Result<ExitCode> {
    let start = Instant::now();
    println!("No containerd can be had here: {reason:#}.");
    println!("This is the local engine, which needs none: a directory has images and layers.");
    let dir = std::env::temp_dir().join(format!("resnap-demo-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("create {dir:?}"))?;
    let shown = show(&dir);
    fs::remove_dir_all(&dir).with_context(|| format!("remove {dir:?}"))?;
    shown?;
    leftovers::no_folder(&dir)?;
    println!(
        "\nAll of it took {}; no file of it is left.",
        seconds(start)
    );
    Ok(ExitCode::SUCCESS)
}

fn show(dir: &Path) -> Result<()> {
    let resnap = std::env::current_exe()?.with_file_name("resnap");
    ensure!(resnap.is_file(), "{resnap:?} is not built: run `make demo`");
    let store = Store {
        resnap,
        root: dir.join("store"),
    };
    let archive = dir.join("web.tar");
    image(&archive)?;
    let image = format!("oci-archive:{}", archive.display());

    say("An image from an archive: each layer becomes an EROFS image, without root.");
    store.resnap(&["unpack", &image], 0)?;
    say("It is there, and each layer is what the image says.");
    store.resnap(&["images"], 0)?;
    store.resnap(&["check", &image, "--snapshotter", "erofs"], 0)?;
    store.resnap(&["verify", &image, "--snapshotter", "erofs"], 0)?;
    say("Somebody deletes a layer. It is found, and made again from its blob.");
    let layer = store.root.join("erofs/snapshots/2/layer.erofs");
    println!("$ rm {}", layer.display());
    fs::remove_file(&layer).with_context(|| format!("remove {layer:?}"))?;
    store.resnap(&["check", &image, "--snapshotter", "erofs"], 1)?;
    store.resnap(&["unpack", &image], 0)?;
    say("An image is removed with what no other needs.");
    store.resnap(&["remove", &image], 0)?;
    store.resnap(&["images"], 0)
}

/// Writes an image of three layers.
fn image(path: &Path) -> Result<()> {
    let layers = (1..=3).map(|number| {
        let file = Entry::file(
            format!("layer{number}"),
            format!("a word from layer {number}\n"),
        );
        Layer::new(&pack(&[file])?, Compression::Gzip)
    });
    let layers: Vec<_> = layers.collect::<Result<_>>()?;
    let image = ImageBuilder::new("docker.io/library/web:1").layers(layers);
    image.write(path).map(drop)
}

struct Store {
    resnap: PathBuf,
    root: PathBuf,
}

impl Store {
    /// Runs resnap as a person would, who expects this exit code.
    fn resnap(&self, arguments: &[&str], code: i32) -> Result<()> {
        let root = self.root.display().to_string();
        let engine = ["--engine", "local", "--root", &root];
        println!("$ resnap {} {}", engine.join(" "), arguments.join(" "));
        let mut command = Command::new(&self.resnap);
        command.args(engine).args(arguments);
        run(&mut command, code)?;
        if code != 0 {
            println!("(exit code {code})");
        }
        Ok(())
    }
}
