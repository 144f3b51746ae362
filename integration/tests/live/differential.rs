// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Random layers, unpacked by containerd's differ and by resnap's, which must create the same trees.
//!
//! A run on three containerds has 2100 tars, 700 for each, always the same. For more on each, or others:
//!
//! ```text
//! RESNAP_TEST_TARS=33400 RESNAP_TEST_SEED=7 \
//!     cargo test -p resnap-integration --test live -- random_tars
//! ```
//!
//! Differences from containerd that are made on purpose are listed in [`excuse`] and [`TAKEN`], and shown case by case by
//! [`table`].

pub(crate) mod lab;
mod table;
mod tars;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use futures::{StreamExt as _, TryStreamExt as _};
use resnap_core::Descriptor;
use resnap_integration::image::{Compression, Entry, ImageBuilder, Layer, hello};
use resnap_integration::tree::{Difference, Field, Kind, Tree, compare};

use self::lab::{Lab, Writer};
use self::table::{ContainerdResult, Native, ROWS, ResnapResult, Row};
use self::tars::{Tars, image, show};
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    ErofsAlone: random_tars_give_the_same_trees,
    Alone: differences_from_containerd_are_in_the_table,
    Alone: differ_containerd_writes_the_tree_of_ctr,
}

/// Tars of a run by itself.
const TARS: u64 = 700;

/// Images that are stored at once.
const CHUNK: u64 = 60;

/// Images that are unpacked at once.
const AT_ONCE: usize = 4;

/// One image in so many is written to each of the other snapshotters, too: that takes time.
const OTHERS_EACH: u64 = 4;

/// Faults that are told.
const TOLD: usize = 20;

/// Errors of containerd for layers that it refuses and resnap takes: the image spec lets whiteouts be
/// in any order, and a layer that only one of both takes is not two trees.
const TAKEN: &[&str] = &[
    // A whiteout of what the layer has, or has a whiteout of.
    "failed to convert whiteout file",
    // Something in a directory that the layer has a whiteout of.
    "not a directory",
    // A hard link to itself; the time of a directory that is not there any more.
    "no such file or directory",
    // A directory in the place of a lower symbolic link that leads nowhere.
    "too many links",
    "too many levels of symbolic links",
];

/// The errors of resnap for layers that containerd takes and resnap refuses.
const REFUSED: &[&str] = &[
    // Resolved as text and through links, such a path has two meanings.
    "what a hard link through `..` means",
    // The way through a symbolic link that goes up from where another one leads, which containerd
    // resolves by its text.
    "follows a symbolic link that another one leads to",
    // A symbolic link to its own parent by its own name: likewise.
    "symbolic links or 8192 components",
    // A directory in the place of what replaced one of a lower layer, in a full copy.
    "would show again",
];

/// The results of a run.
#[derive(Debug, Default)]
struct Count {
    images: u64,
    tars: u64,
    refused_by_both: u64,
    refused_by_containerd: u64,
    refused_by_resnap: u64,
    faults: Vec<String>,
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is {text:?}")),
        Err(_) => Ok(default),
    }
}

fn random_tars_give_the_same_trees(node: &Node) -> Result<()> {
    let wanted = number("RESNAP_TEST_TARS", TARS)?;
    // Each containerd has others.
    let (major, minor, _) = node.containerd.version();
    let daemon = u64::from(100 * major + minor);
    let mut seed = (number("RESNAP_TEST_SEED", 0)? << 40) + (daemon << 24);
    let start = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(AT_ONCE)
        .enable_all()
        .build()?;
    let mut count = Count::default();
    runtime.block_on(async {
        let lab = Lab::new(node).await?;
        while count.tars < wanted {
            let numbers = seed..seed + CHUNK;
            seed += CHUNK;
            let images: Vec<Tars> = numbers.clone().map(image).collect();
            let stored = Lab::store(node, &images)?;
            let judge = Judge {
                lab: &lab,
                node,
                start: start.try_into()?,
            };
            let judged = numbers.zip(images.iter().zip(&stored));
            let judged = judged.map(|(number, (tars, layers))| judge.judge(number, tars, layers));
            let judged: Vec<Count> = futures::stream::iter(judged)
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            for one in judged {
                count.images += one.images;
                count.tars += one.tars;
                count.refused_by_both += one.refused_by_both;
                count.refused_by_containerd += one.refused_by_containerd;
                count.refused_by_resnap += one.refused_by_resnap;
                count.faults.extend(one.faults);
            }
        }
        anyhow::Ok(())
    })?;
    let faults = std::mem::take(&mut count.faults);
    println!("{}: {count:?}", node.containerd.name());
    let told = &faults[..faults.len().min(TOLD)];
    ensure!(
        faults.is_empty(),
        "{} faults: {}",
        faults.len(),
        told.join("\n")
    );
    Ok(())
}

/// A comparison of both on one containerd.
struct Judge<'a> {
    lab: &'a Lab,
    node: &'a Node,
    /// The start of the test, in seconds since 1970.
    start: i64,
}

impl Judge<'_> {
    async fn judge(&self, number: u64, tars: &Tars, layers: &[Descriptor]) -> Result<Count> {
        let mut count = Count {
            images: 1,
            tars: layers.len() as u64,
            ..Count::default()
        };
        let containerd = self
            .lab
            .unpack(Writer::Containerd, "overlayfs", layers)
            .await?;
        let taken = containerd
            .refusal
            .as_ref()
            .map_or(layers.len(), |(index, _)| *index);
        let mut snapshotters = vec!["overlayfs"];
        if self.node.containerd.has_erofs() && number.is_multiple_of(OTHERS_EACH) {
            snapshotters.push("erofs");
        }
        if number % OTHERS_EACH == 1 && !follows(tars) {
            snapshotters.push("native");
        }
        let mut faults = Vec::new();
        for snapshotter in snapshotters {
            let resnap = self
                .lab
                .unpack(Writer::Resnap, snapshotter, &layers[..taken])
                .await?;
            if let Some((_, reason)) = &resnap.refusal
                && (REFUSED.iter().any(|text| reason.contains(text))
                    || (reason.contains("is not a directory") && leaves_a_file(tars)))
            {
                count.refused_by_resnap += 1;
                continue;
            }
            if let Some(refusal) = &resnap.refusal {
                faults.push(format!("{snapshotter}: refused: {refusal:?}"));
                continue;
            }
            let found = compare(&containerd.tree, &resnap.tree)
                .into_iter()
                .filter(|difference| {
                    excuse(self.start, snapshotter, tars, &containerd.tree, difference).is_none()
                });
            faults.extend(found.map(|difference| format!("{snapshotter}: {difference}")));
            let ghosts = resnap.tree.ghosts.iter().map(|path| path.escape_ascii());
            faults.extend(ghosts.map(|path| format!("{snapshotter}: {path} is a ghost")));
            if let Some((index, reason)) = &containerd.refusal {
                let resnap = self
                    .lab
                    .unpack(Writer::Resnap, snapshotter, &layers[..=*index])
                    .await?;
                match resnap.refusal {
                    Some(_) => count.refused_by_both += 1,
                    None if is_taken(reason) => {
                        count.refused_by_containerd += 1;
                    }
                    None => faults.push(format!("{snapshotter}: taken in spite of: {reason}")),
                }
            }
        }
        if !faults.is_empty() {
            let faults = faults.join("\n  ");
            count
                .faults
                .push(format!("image {number}:\n{}  {faults}", show(tars)));
        }
        Ok(count)
    }
}

/// Why a difference is none.
fn excuse(
    start: i64,
    snapshotter: &str,
    tars: &Tars,
    containerd: &Tree,
    difference: &Difference,
) -> Option<&'static str> {
    let path = &difference.path[..];
    let node = containerd.nodes.get(path);
    let is_directory = node.is_some_and(|node| node.kind == Kind::Directory);
    let mtime = node.map_or(0, |node| node.mtime.0);
    let is_copy = snapshotter == "native";
    let is_default = (difference.field == Field::Mode && difference.right == "0755")
        || (matches!(difference.field, Field::Uid | Field::Gid) && difference.right == "0");
    match difference.field {
        _ if path == b"." => Some("containerd ignores what a layer says of the root"),
        Field::Mtime if is_directory && mtime >= start => Some("the time of unpacking"),
        Field::Mtime if is_directory && is_copy => Some("a copy's own"),
        Field::Mtime if is_of_directory(tars, mtime) => Some("that of a directory that was there"),
        Field::Mtime if mtime == 0 && difference.right.starts_with('-') => Some("before 1970"),
        Field::Links if is_copy => Some("copying takes symbolic links and devices apart"),
        Field::Xattr if is_directory && difference.right.starts_with("no ") => {
            Some("the last entry of a directory says all its attributes")
        }
        Field::Gid if is_directory && is_default && is_in_group(tars) => {
            Some("a directory in one with a set-group-ID bit")
        }
        _ if is_directory && is_default && hides(tars, path) => {
            Some("a directory that is new, where there is a hidden one")
        }
        Field::Presence if is_marked(&tars[0]) && hides(&tars[..1], path) => {
            Some("an opaque marker in the lowest layer")
        }
        Field::Links if is_marked(&tars[0]) && hides(&tars[..1], difference.right.as_bytes()) => {
            Some("a name below such a directory of the lowest layer")
        }
        Field::Links if containerd.nodes.keys().any(|path| remakes(tars, path)) => {
            Some("a name that is below such a directory")
        }
        _ if remakes(tars, path) => {
            Some("what is below a directory that is deleted and made again is gone")
        }
        _ => None,
    }
}

/// Returns whether a layer has an opaque marker.
fn is_marked(tar: &[Entry]) -> bool {
    tar.iter()
        .any(|entry| entry.path.ends_with(b"/.wh..wh..opq"))
}

/// Returns whether a directory has the bit.
fn is_in_group(tars: &[Vec<Entry>]) -> bool {
    let mut entries = tars.iter().flatten();
    entries.any(|entry| entry.typeflag == b'5' && entry.permissions() & 0o2000 != 0)
}

/// Returns whether a symbolic link, a whiteout or an opaque marker may hide what lower layers have at a path.
fn hides(tars: &[Vec<Entry>], path: &[u8]) -> bool {
    tars.iter().flatten().any(|entry| {
        let own = cleaned(&entry.path);
        let (parents, name) = own.rsplit_once('/').unwrap_or(("", &own));
        let hidden = match name.strip_prefix(".wh.") {
            // By a symbolic link it may be any.
            Some(".wh..opq") if has_link(tars, parents) => return true,
            Some(".wh..opq") => parents.to_owned(),
            Some(name) => format!("{parents}/{name}")
                .trim_start_matches('/')
                .to_owned(),
            // A hard link may be to a symbolic link.
            None if matches!(entry.typeflag, b'1' | b'2') => own.clone(),
            None => return false,
        };
        is_in(path, hidden.as_bytes())
    })
}

/// Returns whether containerd refuses a layer for a reason for which resnap does not.
fn is_taken(reason: &str) -> bool {
    // One that leads into itself: the path gets too long, and the message is cut before it says so.
    let is_endless = reason.contains(": lstat /") && reason.ends_with('…');
    is_endless || TAKEN.iter().any(|text| reason.contains(text))
}

/// Returns whether a symbolic link may lead up from a file, which containerd resolves by its text.
fn leaves_a_file(tars: &[Vec<Entry>]) -> bool {
    let mut links = tars.iter().flatten().filter(|entry| entry.typeflag == b'2');
    links.any(|link| link.link.windows(3).any(|part| part == b"/.."))
}

/// Returns whether a layer has a symbolic link at this path or at a parent of it.
fn has_link(tars: &[Vec<Entry>], path: &str) -> bool {
    let mut links = tars.iter().flatten().filter(|entry| entry.typeflag == b'2');
    links.any(|link| is_in(path.as_bytes(), cleaned(&link.path).as_bytes()))
}

/// Returns whether a layer may write through a symbolic link of a lower one, which a copy follows and an overlay
/// replaces.
fn follows(tars: &[Vec<Entry>]) -> bool {
    let links = |tar: &&Vec<Entry>| tar.iter().any(|entry| entry.typeflag == b'2');
    let below = tars.split_last().map_or(&[][..], |(_, below)| below);
    below.iter().any(|tar| links(&tar))
}

fn is_in(path: &[u8], top: &[u8]) -> bool {
    path == top || path.starts_with(&[top, b"/"].concat())
}

/// Returns a path as text, without redundant components.
fn cleaned(path: &[u8]) -> String {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(String::from_utf8_lossy(name).into_owned()),
        }
    }
    names.join("/")
}

/// Returns whether it is the time of a directory that a layer states: containerd sets it in the end, of what is
/// at its path by then.
fn is_of_directory(tars: &Tars, mtime: i64) -> bool {
    let mut entries = tars.iter().flatten();
    entries.any(|entry| entry.typeflag == b'5' && entry.seconds().max(0) == mtime)
}

/// Returns whether a layer deletes a directory and makes one again, and the path is in it.
fn remakes(tars: &[Vec<Entry>], path: &[u8]) -> bool {
    tars.iter().any(|tar| {
        let whiteouts = tar.iter().enumerate().filter(|(_, entry)| {
            let own = cleaned(&entry.path);
            let name = own.rsplit('/').next().unwrap_or_default();
            name.starts_with(".wh.") && !name.starts_with(".wh..wh.")
        });
        let mut made = whiteouts.filter(|(index, whiteout)| {
            let later = tar.iter().skip(index + 1);
            let is_made = later.filter(|entry| entry.typeflag == b'5').count() > 0;
            is_made && hides(&[vec![(*whiteout).clone()]], path)
        });
        made.next().is_some()
    })
}

fn differences_from_containerd_are_in_the_table(node: &Node) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let images: Vec<Tars> = ROWS.iter().map(|row| (row.layers)()).collect();
    let stored = Lab::store(node, &images)?;
    let mut faults = Vec::new();
    runtime.block_on(async {
        let lab = Lab::new(node).await?;
        for (row, layers) in ROWS.iter().zip(&stored) {
            for fault in is_as_the_row(node, &lab, row, layers).await? {
                faults.push(format!("{} ({}): {fault}", row.what, row.why));
            }
        }
        anyhow::Ok(())
    })?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Returns the results that differ from a row.
async fn is_as_the_row(
    node: &Node,
    lab: &Lab,
    row: &Row,
    layers: &[Descriptor],
) -> Result<Vec<String>> {
    let last = layers.len() - 1;
    let containerd = lab.unpack(Writer::Containerd, "overlayfs", layers).await?;
    let resnap = lab.unpack(Writer::Resnap, "overlayfs", layers).await?;
    let mut faults = Vec::new();
    let mut differs = differing(&containerd.tree, &resnap.tree);
    match (&row.containerd, &containerd.refusal) {
        (ContainerdResult::Refuses(text), Some((at, reason)))
            if *at == last && reason.contains(text) =>
        {
            differs.clear();
        }
        (ContainerdResult::Differs(fields), None) => {
            let expected = fields
                .iter()
                .map(|(path, field)| ((*path).to_owned(), *field));
            let (expected, found): (BTreeSet<_>, BTreeSet<_>) =
                (expected.collect(), differs.drain(..).collect());
            if expected != found {
                faults.push(format!("containerd's differs in {found:?}"));
            }
        }
        (ContainerdResult::Lists(names), None) => {
            let ghosts = containerd
                .tree
                .ghosts
                .iter()
                .map(|path| path.escape_ascii().to_string());
            if ghosts.collect::<Vec<_>>() != *names {
                faults.push(format!("containerd lists {:?}", containerd.tree.ghosts));
            }
        }
        (ContainerdResult::Takes, None) => {}
        _ => faults.push(format!("containerd: {:?}", containerd.refusal)),
    }
    let is_refused = matches!(row.resnap, ResnapResult::Refuses(_));
    if !differs.is_empty() && !is_refused {
        faults.push(format!("differs from containerd's: {differs:?}"));
    }
    for snapshotter in node.targets() {
        let found = lab.unpack(Writer::Resnap, snapshotter, layers).await?;
        let fault = match (&row.native, &row.resnap, &found.refusal) {
            (Native::Follows, ..) if snapshotter == "native" => continue,
            (Native::Refuses(text), _, Some((at, reason))) if snapshotter == "native" => {
                *at != last || !reason.contains(text)
            }
            (_, ResnapResult::Refuses(text), Some((at, reason))) => {
                *at != last || !reason.contains(text)
            }
            (_, ResnapResult::Has(paths), None) => {
                let all = found.tree.nodes.keys().filter(|path| *path != b".");
                let all: Vec<_> = all.map(|path| path.escape_ascii().to_string()).collect();
                let others = compare(&resnap.tree, &found.tree)
                    .into_iter()
                    .filter(|difference| {
                        snapshotter != "native" || difference.field != Field::Mtime
                    });
                all != **paths || !found.tree.ghosts.is_empty() || others.count() > 0
            }
            _ => true,
        };
        if fault {
            faults.push(format!("{snapshotter}: {found:?}"));
        }
    }
    Ok(faults)
}

/// Returns the differences of two trees, except for the root's time.
fn differing(containerd: &Tree, resnap: &Tree) -> Vec<(String, Field)> {
    let found = compare(containerd, resnap).into_iter();
    let found = found.map(|found| (found.path.escape_ascii().to_string(), found.field));
    found
        .filter(|found| *found != (".".to_owned(), Field::Mtime))
        .collect()
}

/// Unpacks the lowest layer of [`hello`], which has the programs, and on it the layers that the differs write
/// differently.
fn differ_containerd_writes_the_tree_of_ctr(node: &Node) -> Result<()> {
    let hello = hello()?;
    let mut programs = Vec::new();
    GzDecoder::new(&*hello.blob(&hello.layers[0].digest)?).read_to_end(&mut programs)?;
    let mut builder = ImageBuilder::new("docker.io/library/differs:1")
        .layer(Layer::new(&programs, Compression::Gzip)?);
    let rows = ROWS
        .iter()
        .filter(|row| matches!(row.containerd, ContainerdResult::Differs(_)));
    for (number, row) in rows.enumerate() {
        for mut entries in (row.layers)() {
            for entry in &mut entries {
                let own = cleaned(&entry.path);
                entry.path = format!("row{number}/{own}").into_bytes();
            }
            builder = builder.layer(Layer::of(&entries)?);
        }
    }
    let archive = node.containerd.scratch().join("differs");
    let image = builder.write(&archive)?;
    let trees = [true, false].map(|by_ctr| {
        let node = node.in_new_namespace();
        node.import(&image)?;
        match by_ctr {
            true => node.unpack_by_containerd("overlayfs", &image.reference)?,
            false => drop(node.unpack_with_differ("containerd", "overlayfs", &image.reference)?),
        }
        node.tree("overlayfs", &image.reference)
    });
    let [by_ctr, by_resnap] = trees;
    let (by_ctr, by_resnap) = (by_ctr?, by_resnap?);
    let differs = differing(&by_ctr, &by_resnap).into_iter();
    let differs: Vec<_> = differs
        .filter(|(_, field)| *field != Field::Mtime)
        .collect();
    ensure!(differs.is_empty(), "{differs:?}");
    ensure!(by_ctr.ghosts == by_resnap.ghosts, "{:?}", by_resnap.ghosts);
    Ok(())
}
