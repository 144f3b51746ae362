// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A simulated containerd, as far as an applier sees it: its directories and its answers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use resnap_applier::{ApplierSettings, Differ, InProcessApplier};
use resnap_core::testing::{NoopMonitor, Simulated};
use resnap_core::{
    Applied, ApplyMonitor, Batch, BatchApplier, BatchLayer, ByteStream, ChainView, ContentInfo,
    ContentReader, Descriptor, Digest, Error, Integrity, Introspection, Kind, Mount, Ports,
    Preparer, Result, Scope, SnapshotInfo, SnapshotKey, SnapshotKind, SnapshotterInfo,
};
use resnap_layer::testing::{Metadata, Tar};
use tempfile::TempDir;

const ELSEWHERE: &str = "RESNAP_TEST_ELSEWHERE";

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Runs a test again in a process of its own in new namespaces. Returns `false` in that process.
pub(crate) fn elsewhere(test: &str, unshare: &[&str]) -> bool {
    if std::env::var_os(ELSEWHERE).is_some() {
        return false;
    }
    let ended = Command::new("unshare")
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(ELSEWHERE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    true
}

/// Runs a program, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let ended = Command::new(program).args(arguments).output().unwrap();
    assert!(
        ended.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

/// Runs a task to its end, in a test that may run in a process of its own.
pub(crate) fn block_on(task: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(task);
}

/// The metadata of a file of root.
pub(crate) const METADATA: Metadata = Metadata {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 0,
    device: (0, 0),
};

/// Returns an archive of files with their contents.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let files = files.iter();
    files
        .fold(Tar::new(METADATA), |tar, (path, data)| tar.file(path, data))
        .end()
}

pub(crate) struct Bed {
    /// The root of containerd.
    pub(crate) root: PathBuf,
    /// The monitor of batches.
    pub(crate) monitor: Arc<dyn ApplyMonitor>,
    backend: Arc<Backend>,
    snapshots: AtomicUsize,
    _dir: Option<TempDir>,
}

/// The answers of containerd.
struct Backend {
    root: PathBuf,
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// The blob whose stream never ends, and the number of pieces of 1000 bytes before that; without a
    /// number there is no answer at all.
    stuck: Mutex<Option<(Digest, Option<usize>)>>,
    reports_content_root: bool,
    sent: Mutex<Vec<Digest>>,
    left: Mutex<Vec<Digest>>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = dir.path().to_path_buf();
        Self {
            _dir: Some(dir),
            ..Self::at(&root, true)
        }
    }

    /// Returns a bed with this root. `reports_content_root` is whether it reports where its blobs are.
    pub(crate) fn at(root: &Path, reports_content_root: bool) -> Self {
        fs::create_dir_all(root.join("overlayfs/snapshots")).unwrap();
        fs::create_dir_all(root.join("content/blobs/sha256")).unwrap();
        Self {
            root: root.to_path_buf(),
            monitor: Arc::new(NoopMonitor),
            backend: Arc::new(Backend {
                root: root.to_path_buf(),
                blobs: Mutex::default(),
                stuck: Mutex::default(),
                reports_content_root,
                sent: Mutex::default(),
                left: Mutex::default(),
            }),
            snapshots: AtomicUsize::new(0),
            _dir: None,
        }
    }

    /// Returns the path of a blob.
    pub(crate) fn file(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("content/blobs")
            .join(digest.as_str().replace(':', "/"))
    }

    /// Stores a layer and returns its descriptor.
    pub(crate) fn layer(&self, media_type: &str, blob: Vec<u8>) -> Descriptor {
        let digest = Digest::sha256(&blob);
        let size = blob.len() as u64;
        self.put(&digest, blob);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Stores a blob under a digest that it may not match.
    pub(crate) fn put(&self, digest: &Digest, blob: Vec<u8>) {
        fs::write(self.file(digest), &blob).unwrap();
        let mut blobs = self.backend.blobs.lock().unwrap();
        blobs.insert(digest.clone(), blob);
    }

    /// Removes a blob's file. containerd sends only one piece of it, or never answers.
    pub(crate) fn stick(&self, layer: &Descriptor, begins: bool) {
        self.stick_after(layer, begins.then_some(1));
    }

    /// The same after a number of pieces of 1000 bytes.
    pub(crate) fn stick_after(&self, layer: &Descriptor, pieces: Option<usize>) {
        fs::remove_file(self.file(&layer.digest)).unwrap();
        *self.backend.stuck.lock().unwrap() = Some((layer.digest.clone(), pieces));
    }

    /// Makes containerd forget a blob whose file stays.
    pub(crate) fn forget(&self, layer: &Descriptor) {
        self.backend.blobs.lock().unwrap().remove(&layer.digest);
    }

    pub(crate) fn batch(&self, layers: &[Descriptor]) -> Arc<dyn BatchApplier> {
        self.batch_by(Differ::Auto, layers, false)
    }

    pub(crate) fn batch_by(
        &self,
        differ: Differ,
        layers: &[Descriptor],
        sync_fs: bool,
    ) -> Arc<dyn BatchApplier> {
        let mut settings = ApplierSettings::default();
        settings.differs.insert("overlayfs".to_owned(), differ);
        self.batch_with(settings, layers, sync_fs)
    }

    pub(crate) fn batch_with(
        &self,
        settings: ApplierSettings,
        layers: &[Descriptor],
        sync_fs: bool,
    ) -> Arc<dyn BatchApplier> {
        let layers = layers.iter().cloned().map(Into::into).collect();
        self.batch_of(settings, layers, sync_fs)
    }

    pub(crate) fn batch_of(
        &self,
        settings: ApplierSettings,
        layers: Vec<BatchLayer>,
        sync_fs: bool,
    ) -> Arc<dyn BatchApplier> {
        self.applier(settings)
            .batch(&self.batch_for(Preparer::Caller, layers, sync_fs))
            .unwrap()
    }

    /// Returns an applier of a layer in a snapshot that any client of containerd has prepared, with the process
    /// number of containerd.
    pub(crate) fn asked(&self, layer: &Descriptor, containerd: u32) -> Arc<dyn BatchApplier> {
        self.asked_in("", layer, containerd)
    }

    /// The same for a client of this namespace; the empty one is not known.
    pub(crate) fn asked_in(
        &self,
        namespace: &str,
        layer: &Descriptor,
        containerd: u32,
    ) -> Arc<dyn BatchApplier> {
        let preparer = Preparer::Backend(containerd);
        let mut batch = self.batch_for(preparer, vec![layer.clone().into()], false);
        batch.scope = Scope::new(namespace);
        let applier = self.applier(ApplierSettings::default());
        applier.batch(&batch).unwrap()
    }

    fn batch_for(&self, preparer: Preparer, layers: Vec<BatchLayer>, sync_fs: bool) -> Batch {
        Batch {
            scope: Scope::new("default"),
            snapshotter: "overlayfs".to_owned(),
            layers,
            sync_fs,
            integrity: Integrity::Off,
            preparer,
            monitor: Arc::clone(&self.monitor),
        }
    }

    /// Returns the applier of all batches.
    pub(crate) fn applier(&self, settings: ApplierSettings) -> Arc<dyn resnap_core::Applier> {
        let ports = Ports {
            content: Arc::clone(&self.backend) as _,
            applier: Arc::clone(&self.backend) as _,
            introspection: Arc::clone(&self.backend) as _,
            ..Simulated::new().ports()
        };
        Arc::new(InProcessApplier::new(&ports, settings))
    }

    /// Returns a view of the snapshots, the base first.
    pub(crate) fn view(&self, snapshots: &[usize]) -> ChainView {
        let lower = snapshots.iter().rev().map(|at| self.fs(*at));
        let lower: Vec<_> = lower.map(|path| path.display().to_string()).collect();
        let mount = match &lower[..] {
            [only] => mount("bind", only, &["ro".into(), "rbind".into()]),
            lower => mount(
                "overlay",
                "overlay",
                &["index=off".into(), format!("lowerdir={}", lower.join(":"))],
            ),
        };
        let key = |at: &usize| SnapshotKey::from(format!("snapshot {at}"));
        let infos = snapshots
            .iter()
            .enumerate()
            .map(|(at, snapshot)| SnapshotInfo {
                key: key(snapshot),
                parent: at.checked_sub(1).and_then(|at| snapshots.get(at)).map(key),
                kind: SnapshotKind::Committed,
                labels: BTreeMap::new(),
                created: SystemTime::now(),
            });
        ChainView {
            snapshotter: "overlayfs".to_owned(),
            mounts: vec![mount],
            snapshots: infos.collect(),
        }
    }

    /// Returns the directory of a snapshot's files.
    pub(crate) fn fs(&self, snapshot: usize) -> PathBuf {
        self.root.join(format!("overlayfs/snapshots/{snapshot}/fs"))
    }

    /// Creates a snapshot on parents, the lowest first. Returns its number and mounts.
    pub(crate) fn prepare(&self, parents: &[usize], more: &[&str]) -> (usize, Vec<Mount>) {
        let number = self.snapshots.fetch_add(1, Ordering::Relaxed) + 1;
        let upper = self.fs(number);
        let work = upper.with_file_name("work");
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let show = |path: PathBuf| path.display().to_string();
        if parents.is_empty() {
            return (
                number,
                vec![mount("bind", &show(upper), &["rw".into(), "rbind".into()])],
            );
        }
        let lower: Vec<_> = parents.iter().rev().map(|at| show(self.fs(*at))).collect();
        let mut options = vec![
            format!("workdir={}", show(work)),
            format!("upperdir={}", show(upper)),
            format!("lowerdir={}", lower.join(":")),
        ];
        options.extend(more.iter().map(|option| (*option).to_owned()));
        (number, vec![mount("overlay", "overlay", &options)])
    }

    /// Applies all layers, as the engine does. Returns their snapshots.
    pub(crate) async fn apply_all(
        &self,
        batch: &dyn BatchApplier,
        count: usize,
        more: &[&str],
    ) -> Vec<usize> {
        let mut snapshots = Vec::new();
        for index in 0..count {
            let (snapshot, mounts) = self.prepare(&snapshots, more);
            let scope = Scope::new("default");
            batch.apply(&scope, index, &mounts).await.unwrap();
            snapshots.push(snapshot);
        }
        snapshots
    }

    /// Returns the staging directories.
    pub(crate) fn staged(&self) -> Vec<PathBuf> {
        match fs::read_dir(self.root.join("overlayfs/.resnap")) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Returns the layers that containerd was asked to apply.
    pub(crate) fn left(&self) -> Vec<Digest> {
        self.backend.left.lock().unwrap().clone()
    }

    /// Returns the blobs that containerd was asked to send.
    pub(crate) fn sent(&self) -> Vec<Digest> {
        self.backend.sent.lock().unwrap().clone()
    }
}

pub(crate) fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.to_vec(),
    }
}

#[async_trait]
impl resnap_core::Applier for Backend {
    /// A stuck blob is written for two seconds first.
    async fn apply(
        &self,
        _: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        _: bool,
    ) -> Result<Applied> {
        self.left.lock().unwrap().push(layer.digest.clone());
        let stuck = self.stuck.lock().unwrap().clone();
        if stuck.is_some_and(|(stuck, _)| stuck == layer.digest) {
            for at in 0..20 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                fs::write(Path::new(&mounts[0].source).join("file"), at.to_string()).unwrap();
            }
            std::future::pending().await
        }
        Ok(Applied {
            diff_id: Some(layer.digest.clone()),
            size: 0,
            is_own_image: false,
            proof: None,
        })
    }
}

#[async_trait]
impl ContentReader for Backend {
    async fn info(&self, _: &Scope, digest: &Digest) -> Result<ContentInfo> {
        let blobs = self.blobs.lock().unwrap();
        let blob = blobs.get(digest);
        let missing = || Error::new(Kind::NotFound, "look up", digest.as_str());
        Ok(ContentInfo {
            size: blob.ok_or_else(missing)?.len() as u64,
            labels: Default::default(),
        })
    }

    async fn open(&self, _: &Scope, digest: &Digest) -> Result<ByteStream> {
        self.sent.lock().unwrap().push(digest.clone());
        let blob = self.blobs.lock().unwrap().get(digest).cloned();
        let missing = || Error::new(Kind::NotFound, "read", digest.as_str());
        let blob = blob.ok_or_else(missing)?;
        let stuck = self.stuck.lock().unwrap().clone();
        let pieces: Vec<_> = blob.chunks(1000).map(Bytes::copy_from_slice).collect();
        let pieces = futures::stream::iter(pieces).map(Ok);
        match stuck.filter(|(stuck, _)| stuck == digest) {
            Some((_, Some(count))) => {
                Ok(pieces.take(count).chain(futures::stream::pending()).boxed())
            }
            Some((_, None)) => std::future::pending().await,
            None => Ok(pieces.boxed()),
        }
    }
}

#[async_trait]
impl Introspection for Backend {
    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        Ok(vec![SnapshotterInfo {
            name: "overlayfs".to_owned(),
            capabilities: Vec::new(),
            platforms: Vec::new(),
            root: Some(self.root.join("overlayfs").display().to_string()),
            failure: None,
        }])
    }

    async fn identity(&self) -> Result<String> {
        Ok("bed".to_owned())
    }

    async fn content_root(&self) -> Result<Option<String>> {
        let root = self.root.join("content").display().to_string();
        Ok(self.reports_content_root.then_some(root))
    }
}
