// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leftovers of processes, and a node that is well.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use resnap_containerd::Client;
use resnap_core::{Descriptor, Digest, LeaseId, Scope};
use resnap_integration::daemon::Options;
use resnap_integration::image::{crowd, hello};

use super::{Bed, Examined};
use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;

live_tests! {
    One: doctor_removes_what_processes_left,
    Erofs: doctor_takes_less_than_a_second_for_a_hundred_images,
}

const LEFT: [&str; 2] = ["orphans.leases", "orphans.staging"];

/// A lease whose process has ended, as the daemon's runtime directory says.
fn leave_lease(bed: &Bed) -> Result<()> {
    let dir = bed.served.dir.metadata()?;
    let locks = format!("resnap.io/locks=directory {}:{}", dir.dev(), dir.ino());
    let expires = "containerd.io/gc.expire=2100-01-01T00:00:00Z";
    let labels = [
        "resnap.io/image=web:1",
        "resnap.io/snapshotter=native",
        &locks,
        expires,
    ];
    let create = ["leases", "create", "--id", "left"];
    bed.node.ctr(&[&create[..], &labels].concat()).map(drop)
}

/// An ingest under that lease, whose client was killed long ago.
fn leave_ingest(bed: &Bed) -> Result<()> {
    let (containerd, bytes) = (&bed.node.containerd, vec![7; 1 << 20]);
    let descriptor = Descriptor {
        media_type: String::new(),
        digest: Digest::sha256(b"other bytes"),
        size: 2 << 20,
        annotations: BTreeMap::new(),
        platform: None,
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let socket = containerd.socket().to_string_lossy();
        let writer = Client::connect(&socket).await?.ports().writer;
        let scope = Scope::new(&bed.node.namespace).leased(LeaseId("left".into()));
        let mut ingest = writer.ingest(&scope, "left", &descriptor).await?;
        ingest.write(bytes.into()).await?;
        anyhow::Ok(())
    })?;
    let ingests = containerd
        .root()
        .join("io.containerd.content.v1.content/ingest");
    let dirs = fs::read_dir(&ingests)?.map(|dir| Ok(dir?.path()));
    let dirs: Vec<PathBuf> = dirs.collect::<Result<_>>()?;
    // containerd closes it when the connection has ended.
    eventually("the ingest is old", DEADLINE, || {
        for dir in &dirs {
            fs::write(dir.join("updatedat"), "1970-01-02T00:00:00Z")?;
            let data = File::options().append(true).open(dir.join("data"))?;
            data.set_modified(UNIX_EPOCH + Duration::from_secs(86400))?;
        }
        let found = bed.doctor(&[])?;
        let steps = ["the next pull of its image goes on with it"];
        Ok(found
            .assert_way_out("orphans.ingests", &["left", "1.05 MB"], &steps)
            .is_ok())
    })
}

/// Checks that all was fixed, or would be, but for the ingest, which goes with its lease.
fn assert_fixes(examined: &Examined, done: bool) -> Result<()> {
    let fixes = &examined.document["fixes"];
    let of = |key: &str| {
        fixes
            .as_array()
            .into_iter()
            .flatten()
            .map(move |fix| &fix[key])
            .collect::<Vec<_>>()
    };
    let actions = ["delete-orphaned-leases", "remove-staging"];
    ensure!(
        of("action") == actions && of("done") == [done; 2],
        "{fixes}"
    );
    Ok(())
}

fn doctor_removes_what_processes_left(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..crate::suite::options()
    };
    let bed = Bed::start(shared, options, "")?;
    let node = &bed.node;
    bed.assert_well()?;
    // containerd's own collection may be due.
    node.collect_garbage()?;
    let staging = node.snapshotter_root("native").join(".resnap/left");
    fs::create_dir_all(&staging)?;
    fs::write(staging.join("file"), "")?;
    leave_lease(&bed)?;
    leave_ingest(&bed)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&LEFT)?;
    found.assert_way_out("orphans.leases", &["web:1"], &["resnap leases --sweep"])?;
    found.assert_way_out("orphans.staging", &["native", ".resnap"], &[])?;

    let told = bed.doctor(&["--fix", "--dry-run"])?;
    told.assert_found(&LEFT)?;
    assert_fixes(&told, false)?;
    bed.doctor(&[])?.assert_found(&LEFT)?;

    let fixed = bed.doctor(&["--fix"])?;
    fixed.assert_found(&[])?;
    assert_fixes(&fixed, true)?;
    ensure!(!staging.exists(), "{staging:?} is left");
    let leases = node.leases()?;
    ensure!(!leases.iter().any(|lease| lease == "left"), "{leases:?}");
    bed.assert_well()?;

    // Nothing keeps the snapshots of an image any more; containerd itself may be faster.
    let image = hello()?;
    node.import(&image)?;
    let label = [
        "content",
        "label",
        &image.config,
        "containerd.io/gc.ref.snapshot.native=",
    ];
    node.unpack("native", &image.reference)?;
    let keeper = node.keep("native", image.chain_id())?;
    node.ctr(&label)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&[])?;
    let about = ["3 snapshots on native", "leases keep them"];
    found.assert_way_out("orphans.leased-snapshots", &about, &["resnap leases"])?;
    node.ctr(&["leases", "rm", &keeper])?;
    eventually("snapshots without an image are found", DEADLINE, || {
        node.unpack("native", &image.reference)?;
        node.ctr(&label)?;
        let found = bed.doctor(&[])?;
        let steps = ["ctr leases delete"];
        let about = ["3 snapshots on native"];
        Ok(found
            .assert_way_out("orphans.snapshots", &about, &steps)
            .is_ok())
    })?;
    bed.doctor(&["--fix"])?.assert_found(&[])?;
    ensure!(node.snapshots("native")?.is_empty(), "snapshots are left");
    bed.assert_well()?;
    bed.served.stop()
}

fn doctor_takes_less_than_a_second_for_a_hundred_images(shared: &Node) -> Result<()> {
    let options = Options {
        pull_for_handlers: true,
        ..crate::suite::options()
    };
    let bed = Bed::start(shared, options, "")?;
    let path = bed.node.containerd.scratch().join("crowd");
    let images = crowd(0..100, &path)?;
    bed.node.import(&images[0])?;
    let warm = [
        "warm",
        "--all",
        "--snapshotter",
        "overlayfs",
        "--snapshotter",
        "erofs",
    ];
    bed.node
        .resnap(&[&warm[..], &["--min-free", "1 KiB"]].concat())?
        .ok()?;
    bed.node.collect_garbage()?;
    // Other tests use the same cores.
    eventually("doctor takes less than a second", DEADLINE, || {
        let start = Instant::now();
        bed.assert_well()?;
        // Twice: for programs and for people.
        Ok(start.elapsed() < Duration::from_secs(2))
    })?;
    let disk = &bed.doctor(&["--disk"])?.document["disk"];
    let rows = disk["images"].as_array().context("no images")?;
    let of = |image: &str, place: Option<&str>| {
        let mut rows = rows.iter();
        let row = rows.find(|row| row["image"] == image && row["snapshotter"].as_str() == place);
        row.with_context(|| format!("{image} in {place:?}"))
    };
    for place in [None, Some("overlayfs"), Some("erofs")] {
        let row = of(&images[7].reference, place)?;
        ensure!(row["own_bytes"].as_u64() > Some(0), "{row}");
        ensure!(row["shared_bytes"].as_u64() > Some(0), "{row}");
    }
    bed.served.stop()
}
