// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `make demo`: resnap at work on a real containerd, with every command and what it printed. Where no containerd can
//! be had, it shows the local engine, which needs none.
//!
//! The program runs twice: the outer one starts the inner one, which makes private namespaces and
//! plays the demo there, and looks from the outside whether anything was left behind.

// Printing is the purpose of this program.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod leftovers;
mod local;
mod steps;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::daemon::{Containerd, Options, in_private_namespaces};
use resnap_integration::debian::{output, provision, target_dir};
use resnap_integration::image::{Built, WEB_SAYS, pause, web};
use steps::{run, say, seconds};

/// The namespace of kubelet, and the default of resnap.
const NAMESPACE: &str = "k8s.io";

/// The label of resnap's that nydus passes on to the guest.
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// The image as a person names it.
const IMAGE: &str = "web:1";

fn main() -> ExitCode {
    let result = match std::env::args().nth(1) {
        Some(id) => in_private_namespaces().and_then(|()| play(&id)),
        None => match containerd_can_be_had() {
            Ok(()) => outer(),
            Err(reason) => local::play(&reason),
        },
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Checks that a containerd can be started here.
fn containerd_can_be_had() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root may start one"
    );
    provision().map(drop)
}

/// Starts the inner program, and looks at what it left.
fn outer() -> Result<ExitCode> {
    let start = Instant::now();
    let mut inner = Command::new(std::env::current_exe()?)
        // The container's ID: of two demos at a time each has to have its own.
        .arg(format!("demo-{}", std::process::id()))
        .spawn()
        .context("start the demo itself")?;
    let run = target_dir().join("run").join(inner.id().to_string());
    if !inner.wait()?.success() {
        // It said why.
        return Ok(ExitCode::FAILURE);
    }
    leftovers::no_folder(&run)?;
    println!(
        "\nAll of it took {}; no process, mount or file of it is left.",
        seconds(start)
    );
    Ok(ExitCode::SUCCESS)
}

fn play(id: &str) -> Result<ExitCode> {
    let mut demo = Demo::start()?;
    demo.pull()?;
    demo.before()?;
    demo.unpack()?;
    demo.run_from_erofs(id)?;
    demo.run_a_pod_on_nydus()?;
    demo.stop()?;
    Ok(ExitCode::SUCCESS)
}

struct Demo {
    containerd: Containerd,
    resnap: PathBuf,
    web: Built,
    pause: Built,
    step: Instant,
}

impl Demo {
    fn start() -> Result<Self> {
        let step = Instant::now();
        println!(
            "Programs and images are made of Debian's packages; the first run downloads them."
        );
        let resnap = std::env::current_exe()?.with_file_name("resnap");
        ensure!(resnap.is_file(), "{resnap:?} is not built: run `make demo`");
        let provisioned = provision().context("provide containerd and nydus-snapshotter")?;
        let (web, pause) = (web()?, pause()?);
        for image in [&web, &pause] {
            println!(
                "  {}: layers: {}, {:.1} MB",
                image.reference,
                image.layers.len(),
                image.layers.iter().map(|layer| layer.size).sum::<u64>() as f64 / 1e6,
            );
        }
        let options = Options {
            nydus: true,
            ..Options::default()
        };
        let containerd = Containerd::start(provisioned.newest()?, options)?;
        println!(
            "  {} runs, with nydus-snapshotter in proxy mode",
            containerd.name()
        );
        ensure!(
            containerd.has_erofs(),
            "{} has no erofs snapshotter here; `modprobe erofs` may help",
            containerd.name()
        );
        let mut demo = Self {
            containerd,
            resnap,
            web,
            pause,
            step,
        };
        demo.end_step();
        Ok(demo)
    }

    /// Imports an image and unpacks it for overlayfs, as a pull does.
    fn pull(&mut self) -> Result<()> {
        say("Two images come to the node as by a pull: their blobs, and layers on overlayfs.");
        println!(
            "$ export CONTAINERD_ADDRESS={}",
            self.containerd.socket().display()
        );
        let mnt = self.containerd.scratch().join("mnt");
        fs::create_dir_all(&mnt).with_context(|| format!("create {mnt:?}"))?;
        let mnt = mnt.to_string_lossy();
        for image in [&self.pause, &self.web] {
            let archive = image.archive.to_string_lossy();
            self.ctr(&["images", "import", "--no-unpack", &archive])?;
            // Mounting an image unpacks it; there is no `ctr images unpack`.
            self.ctr(&["images", "mount", &image.reference, &mnt])?;
            self.ctr(&["images", "unmount", "--rm", &mnt])?;
        }
        self.end_step();
        Ok(())
    }

    fn before(&mut self) -> Result<()> {
        say("On erofs and nydus nothing of them is there.");
        self.resnap(&["images"], 0)?;
        self.resnap(&["check", IMAGE, "--snapshotter", "erofs"], 1)?;
        self.end_step();
        Ok(())
    }

    fn unpack(&mut self) -> Result<()> {
        say("resnap unpacks for erofs, which makes a file system of each layer.");
        self.resnap(&["unpack", IMAGE, "--snapshotter", "erofs"], 0)?;
        self.end_step();
        say("For nydus it labels the layers: the guest will pull them by what the labels say.");
        self.resnap(&["unpack", IMAGE, "pause:1", "--snapshotter", "nydus"], 0)?;
        self.end_step();
        say("Now it is ready on both.");
        self.resnap(&["check", IMAGE, "--snapshotter", "erofs"], 0)?;
        self.resnap(&["check", IMAGE, "--snapshotter", "nydus"], 0)?;
        self.resnap(&["images"], 0)?;
        self.end_step();
        Ok(())
    }

    fn run_from_erofs(&mut self, id: &str) -> Result<()> {
        say("A container runs from erofs, and says a word from each of its six layers.");
        let image = &self.web.reference;
        let arguments = ["run", "--rm", "--snapshotter", "erofs", image, id];
        let output = output(&mut self.ctr_command(&arguments))?;
        print!("{output}");
        ensure!(
            output.trim() == WEB_SAYS,
            "the container on erofs printed {output:?}, not {WEB_SAYS:?}"
        );
        self.end_step();
        Ok(())
    }

    fn run_a_pod_on_nydus(&mut self) -> Result<()> {
        say(
            "The CRI starts a pod with the runtime handler nydus. A stand-in for Kata's guest\n\
             shows which volumes the guest is told to pull.",
        );
        let cri = Cri::connect(self.containerd.socket(), &self.containerd.scratch())?;
        let pod = cri.run_pod_sandbox("nydus", "demo")?;
        let says = ["/bin/sh", "-c", "echo the container ran"];
        let exited = cri.run(&pod, "web", &self.web.reference, &says)?;
        cri.remove_pod_sandbox(&pod)?;
        print!("{}", exited.output);
        ensure!(
            exited.code == 0,
            "the container in the pod ended with code {}",
            exited.code
        );
        let mut told = Vec::new();
        for call in self.containerd.mount_helper_calls()? {
            let volume = call
                .volume
                .context("mount.fuse was called without a volume")?;
            let digest = volume["image_pull"]["metadata"][LAYER_DIGEST].as_str();
            let digest = digest.map(str::to_owned);
            // containerd mounts a container's root twice.
            if !told.contains(&digest) {
                println!("{volume}");
                told.push(digest);
            }
        }
        let top = [&self.pause, &self.web]
            .map(|image| image.layers.last().map(|layer| layer.digest.clone()));
        ensure!(
            told == top,
            "the guest was told of {told:?}, not of {top:?}"
        );
        self.end_step();
        Ok(())
    }

    fn stop(self) -> Result<()> {
        let run = self.containerd.root();
        let run = run.parent().context("containerd's root has no parent")?;
        self.containerd.stop()?;
        leftovers::no_folder(run)?;
        leftovers::no_processes()
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        run(&mut self.ctr_command(arguments), 0)
    }

    fn ctr_command(&self, arguments: &[&str]) -> Command {
        println!("$ ctr --namespace {NAMESPACE} {}", arguments.join(" "));
        let mut command = self.containerd.ctr(NAMESPACE);
        command.args(arguments);
        command
    }

    /// Runs resnap as a person would, who expects this exit code.
    fn resnap(&self, arguments: &[&str], code: i32) -> Result<()> {
        println!("$ resnap {}", arguments.join(" "));
        let mut command = Command::new(&self.resnap);
        command
            .env("CONTAINERD_ADDRESS", self.containerd.socket())
            .env_remove("CONTAINERD_NAMESPACE");
        run(command.args(arguments), code)?;
        if code != 0 {
            println!("(exit code {code})");
        }
        Ok(())
    }

    fn end_step(&mut self) {
        println!("[{}]", seconds(self.step));
        self.step = Instant::now();
    }
}
