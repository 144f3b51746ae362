// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap --engine local`, next to what a containerd has of the same images.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::output;
use resnap_integration::image::{Built, EDGE_CASES_CLOCK, ROOT_CLOCK, hello};
use resnap_integration::registry::Registry;
use resnap_integration::tree::{self, Expected, Field, Surprise, Tree, compare, surprises};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tempfile::TempDir;

use crate::applier::{RUN, images};
use crate::command::{CommandOutput, resnap, run_to_end};
use crate::missing::pushed;
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Erofs: local_trees_are_those_of_containerd,
    Erofs: local_images_come_from_registries_and_archives,
}

/// A user without any rights.
const NOBODY: u32 = 65534;

/// The start of a container makes its mount points.
const MADE: Expected = Expected {
    path: "run",
    field: Field::Presence,
    reason: "the container runtime makes it",
};

/// Mounts that end with the value, the last first.
#[derive(Default)]
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn add(&mut self, path: PathBuf, mounted: rustix::io::Result<()>) -> Result<()> {
        mounted.with_context(|| format!("mount {path:?}"))?;
        self.0.push(path);
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The namespace of the suite ends with it.
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

/// A store, and the program where the user may run it.
struct Store {
    // Before the directory, in which they are.
    mounts: Mounts,
    dir: TempDir,
    user: u32,
}

impl Store {
    fn new(user: u32) -> Result<Self> {
        // In memory, and any user may enter it.
        let dir = tempfile::tempdir_in("/run")?;
        chown(dir.path(), Some(user), Some(user))?;
        let program = dir.path().join("resnap");
        File::create(&program)?;
        let mut mounts = Mounts::default();
        let bound = mount_bind(resnap()?.get_program(), &program);
        mounts.add(program, bound)?;
        Ok(Self { mounts, dir, user })
    }

    fn resnap(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let config = self.dir.path().join("config.toml");
        fs::write(&config, "")?;
        let (user, dir) = (self.user.to_string(), self.dir.path());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.arg(dir.join("resnap")).env("RESNAP_CONFIG", config);
        command
            .args(["--engine", "local", "--root"])
            .arg(dir.join("store"));
        run_to_end(command.args(arguments))
    }

    /// Copies an archive to where the user can read it, and returns the image's name there.
    fn archive(&self, image: &Built) -> Result<String> {
        let path = self.dir.path().join(unique("archive"));
        fs::copy(&image.archive, &path)?;
        Ok(format!("oci-archive:{}", path.display()))
    }

    /// Returns the tree of the only image of the store, which has these layers.
    fn tree(&mut self, snapshotter: &str, layers: usize) -> Result<Tree> {
        let snapshots = self
            .dir
            .path()
            .join("store")
            .join(snapshotter)
            .join("snapshots");
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&snapshots)? {
            numbers.push(entry?.file_name().to_string_lossy().parse::<u32>()?);
        }
        ensure!(
            numbers.len() == layers,
            "{numbers:?} instead of {layers} layers"
        );
        // All options of a mount have a page.
        let short = self.dir.path().join("s");
        symlink(&snapshots, &short)?;
        // They are numbered as they were prepared.
        numbers.sort_unstable_by(|left, right| right.cmp(left));
        let mut lower = Vec::new();
        for number in numbers {
            let snapshot = short.join(number.to_string());
            let files = match snapshotter {
                "erofs" => self.image(&snapshot.join("layer.erofs"))?,
                _ => snapshot.join("fs"),
            };
            lower.push(files.display().to_string());
        }
        // As a container has it.
        let [upper, work] = ["upper", "work"].map(|name| self.dir.path().join(name));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let root = self.overlay(&options)?;
        tree::read(&root)
    }

    /// Mounts an image. The kernel mounts no file on a file system in memory, but a device of it.
    fn image(&mut self, image: &Path) -> Result<PathBuf> {
        let path = self.mount_point()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "ro,loop"]);
        output(mount.arg(image).arg(&path))?;
        self.mounts.add(path.clone(), Ok(()))?;
        Ok(path)
    }

    fn overlay(&mut self, options: &str) -> Result<PathBuf> {
        let path = self.mount_point()?;
        let options = std::ffi::CString::new(options)?;
        let mounted = mount("overlay", &path, "overlay", MountFlags::empty(), &*options);
        self.mounts.add(path.clone(), mounted)?;
        Ok(path)
    }

    fn mount_point(&self) -> Result<PathBuf> {
        let path = self.dir.path().join(unique("m"));
        fs::create_dir(&path)?;
        Ok(path)
    }
}

/// EROFS images are written by a user without rights, directories by root.
fn local_trees_are_those_of_containerd(node: &Node) -> Result<()> {
    let clocks = [ROOT_CLOCK, EDGE_CASES_CLOCK, &[RUN, MADE]].concat();
    for (image, _) in images()? {
        let node = node.in_new_namespace();
        node.import(&image)?;
        for (snapshotter, user) in [("erofs", NOBODY), ("overlayfs", 0)] {
            let mut store = Store::new(user)?;
            let name = store.archive(&image)?;
            let arguments = ["unpack", "--json", "--snapshotter", snapshotter, &name];
            store.resnap(&arguments)?.report()?;
            let local = store.tree(snapshotter, image.layers.len())?;
            node.unpack_with_differ("resnap", snapshotter, &image.reference)?;
            let differences = compare(&node.tree(snapshotter, &image.reference)?, &local);
            let mut surprises = surprises(&differences, &clocks);
            surprises.retain(|surprise| matches!(surprise, Surprise::Unexpected(_)));
            let surprises: Vec<_> = surprises.iter().map(ToString::to_string).collect();
            let reference = &image.reference;
            ensure!(
                surprises.is_empty(),
                "{reference} on {snapshotter}: {surprises:#?}"
            );
        }
    }
    Ok(())
}

fn local_images_come_from_registries_and_archives(node: &Node) -> Result<()> {
    let dir = node.containerd.scratch().join(unique("registry"));
    let registry = Registry::start(node.containerd.dist(), &dir)?;
    let image = pushed(node, &registry, &hello()?, "hello:1")?;
    let store = Store::new(NOBODY)?;
    let name = format!("docker://{}", image.reference);
    let report = store.resnap(&["unpack", "--json", &name])?.report()?;
    ensure!(report["snapshotter"] == "erofs", "{report}");
    ensure!(report["manifest"] == image.manifest, "{report}");
    let report = store
        .resnap(&["unpack", "--json", &image.reference])?
        .report()?;
    ensure!(report["layers"][0]["outcome"] == "existed", "{report}");

    // The same layers.
    let archived = store.archive(&hello()?)?;
    let report = store.resnap(&["unpack", "--json", &archived])?.report()?;
    ensure!(report["layers"][2]["outcome"] == "existed", "{report}");
    for command in ["check", "verify"] {
        store
            .resnap(&[command, "--snapshotter", "erofs", &name, &archived])?
            .ok()?;
    }
    let images = store.resnap(&["images", "--json"])?.json()?;
    for (row, name) in [(0, &image.reference), (1, &archived)] {
        ensure!(images[row]["image"] == name.as_str(), "{images:#}");
        ensure!(images[row]["ready"]["erofs"] == true, "{images:#}");
    }

    let directories = store.resnap(&["unpack", "--json", "-s", "overlayfs", &name])?;
    let error = directories.error()?.to_string();
    ensure!(
        error.contains("only root may write layers as directories"),
        "{error}"
    );
    let absent = store.resnap(&["unpack", "--json", "oci:/nowhere:1"])?;
    ensure!(
        absent.code == Some(2) && absent.stderr.contains("/nowhere"),
        "{absent:#?}"
    );
    let absent = format!("docker://{}", registry.reference("hello:2"));
    let absent = store.resnap(&["unpack", "--json", &absent])?;
    ensure!(absent.kind()? == "NotFound", "{absent:#?}");
    Ok(())
}
