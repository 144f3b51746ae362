// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers unpacked one by one on a running containerd, by either differ, and the tree that a
//! container would see.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use resnap_applier::{ApplierSettings, Differ, InProcessApplier};
use resnap_containerd::Client;
use resnap_core::testing::NoopMonitor;
use resnap_core::{
    Applied, Applier as _, Batch, BatchApplier, ChainId, Descriptor, Digest, Labels, Mount, Ports,
    Scope, SnapshotKey, Snapshotter,
};
use resnap_integration::debian::output;
use resnap_integration::image::{Compression, Entry, ImageBuilder, Layer};
use resnap_integration::tree::{self, Tree};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::node::{Node, unique};

/// The differ that writes the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    Containerd,
    Resnap,
}

/// The result of writing layers.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The tree of all layers below a refused one.
    pub(crate) tree: Tree,
    /// The layer that was refused, and why.
    pub(crate) refusal: Option<(usize, String)>,
}

/// A containerd's snapshotters, and what is written to them.
pub(crate) struct Lab {
    ports: Ports,
    resnap: InProcessApplier,
    scope: Scope,
    dir: PathBuf,
    next: AtomicU64,
}

/// One chain of snapshots.
struct Chain {
    snapshotter: Arc<dyn Snapshotter>,
    names: Vec<ChainId>,
    /// The directories of the snapshots, the topmost first.
    dirs: Vec<PathBuf>,
}

impl Lab {
    pub(crate) async fn new(node: &Node) -> Result<Self> {
        let ports = Client::connect(&node.containerd.socket().to_string_lossy())
            .await?
            .ports();
        let mut settings = ApplierSettings::default();
        for name in ["overlayfs", "native", "erofs"] {
            settings.differs.insert(name.to_owned(), Differ::Resnap);
        }
        let dir = node.containerd.scratch().join(unique("lab"));
        std::fs::create_dir_all(dir.join("empty"))?;
        Ok(Self {
            resnap: InProcessApplier::new(&ports, settings),
            ports,
            scope: Scope::new(&node.namespace),
            dir,
            next: AtomicU64::new(0),
        })
    }

    /// Puts the tars of images on the node, as layers of one image that is never unpacked whole.
    pub(crate) fn store(node: &Node, images: &[Vec<Vec<Entry>>]) -> Result<Vec<Vec<Descriptor>>> {
        let mut builder = ImageBuilder::new(&format!("docker.io/library/{}:1", unique("tars")));
        let mut stored = Vec::new();
        for image in images {
            let mut layers = Vec::new();
            for entries in image {
                let tar = resnap_integration::image::tar_entry::pack(entries)?;
                let layer = Layer::new(&tar, Compression::None)?;
                layers.push(Descriptor {
                    media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
                    digest: layer.digest.parse()?,
                    size: layer.size,
                    annotations: Default::default(),
                    platform: None,
                });
                builder = builder.layer(layer);
            }
            stored.push(layers);
        }
        let archive = node.containerd.scratch().join(unique("tars"));
        node.import(&builder.write(&archive)?)?;
        std::fs::remove_file(archive)?;
        Ok(stored)
    }

    /// Unpacks layers until one is refused, and looks at them.
    pub(crate) async fn unpack(
        &self,
        writer: Writer,
        snapshotter: &str,
        layers: &[Descriptor],
    ) -> Result<Outcome> {
        let batch = Batch {
            scope: self.scope.clone(),
            snapshotter: snapshotter.to_owned(),
            layers: layers.iter().cloned().map(Into::into).collect(),
            sync_fs: false,
            integrity: resnap_core::Integrity::Off,
            preparer: resnap_core::Preparer::Caller,
            monitor: Arc::new(NoopMonitor),
        };
        let batch = match writer {
            Writer::Containerd => resnap_core::in_batch(&self.ports.applier, batch),
            Writer::Resnap => self.resnap.batch(&batch).context("resnap writes none")?,
        };
        let mut chain = Chain {
            snapshotter: self.ports.snapshotters.snapshotter(snapshotter),
            names: Vec::new(),
            dirs: Vec::new(),
        };
        let refusal = self.fill(&mut chain, &*batch, layers).await;
        batch.end().await;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tree = tokio::task::block_in_place(|| self.look(snapshotter, &chain.dirs, number));
        for name in chain.names.iter().rev() {
            chain.snapshotter.remove(&self.scope, &name.into()).await?;
        }
        let (tree, refusal) = (tree?, refusal?);
        Ok(Outcome { tree, refusal })
    }

    async fn fill(
        &self,
        chain: &mut Chain,
        batch: &dyn BatchApplier,
        layers: &[Descriptor],
    ) -> Result<Option<(usize, String)>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let labels = Labels::from([("containerd.io/gc.root".to_owned(), "test".to_owned())]);
        for (index, layer) in layers.iter().enumerate() {
            let name =
                ChainId::from_trusted(Digest::sha256(format!("{number}/{index}").as_bytes()));
            let key = SnapshotKey::extraction("differential", &name);
            let (snapshotter, scope) = (&chain.snapshotter, &self.scope);
            let parent = chain.names.last();
            let mounts = snapshotter.prepare(scope, &key, parent, &labels).await?;
            match batch.apply(scope, index, &mounts).await {
                Ok(Applied { diff_id, .. }) => {
                    ensure!(diff_id.as_ref() == Some(&layer.digest), "{diff_id:?}")
                }
                Err(error) => {
                    snapshotter.remove(scope, &key).await?;
                    return Ok(Some((index, resnap_core::error_chain(&error))));
                }
            }
            snapshotter.commit(scope, &name, &key, &labels).await?;
            chain.names.push(name);
            chain.dirs.insert(0, directory(&mounts)?);
        }
        Ok(None)
    }

    /// Returns the tree that a container would see of the snapshots in `dirs`.
    fn look(&self, snapshotter: &str, dirs: &[PathBuf], number: u64) -> Result<Tree> {
        let Some(top) = dirs.first() else {
            return Ok(Tree::default());
        };
        if snapshotter == "native" {
            return tree::read(top);
        }
        let at = self.dir.join(number.to_string());
        let mut lower = dirs.to_vec();
        let mut mounted = Vec::new();
        let looked = (|| {
            if snapshotter == "erofs" {
                for (index, dir) in lower.iter_mut().enumerate() {
                    let to = at.join(index.to_string());
                    std::fs::create_dir_all(&to)?;
                    erofs(&dir.with_file_name("layer.erofs"), &to)?;
                    mounted.push(to.clone());
                    *dir = to;
                }
            }
            // An overlay of one directory cannot be.
            lower.push(self.dir.join("empty"));
            let to = at.join("merged");
            std::fs::create_dir_all(&to)?;
            let lower: Vec<&[u8]> = lower.iter().map(|dir| dir.as_os_str().as_bytes()).collect();
            let data = CString::new([b"lowerdir=", &lower.join(&b":"[..])[..]].concat())?;
            mount("overlay", &to, "overlay", MountFlags::RDONLY, &*data).context("an overlay")?;
            mounted.push(to.clone());
            tree::read(&to)
        })();
        for at in mounted.iter().rev() {
            unmount(at, UnmountFlags::DETACH)?;
        }
        std::fs::remove_dir_all(&at)?;
        looked
    }
}

/// Returns the directory of the snapshot of these mounts.
fn directory(mounts: &[Mount]) -> Result<PathBuf> {
    let mount = mounts.last().context("no mounts")?;
    let mut options = mount.options.iter();
    let upper = options.find_map(|option| option.strip_prefix("upperdir="));
    Ok(PathBuf::from(upper.unwrap_or(&mount.source)))
}

/// Mounts an image, of which Linux 6.12 needs no device.
pub(crate) fn erofs(image: &Path, to: &Path) -> Result<()> {
    if mount(image, to, "erofs", MountFlags::RDONLY, None).is_err() {
        let mut command = Command::new("mount");
        output(
            command
                .args(["-t", "erofs", "-o", "loop,ro"])
                .args([image, to]),
        )?;
    }
    Ok(())
}
