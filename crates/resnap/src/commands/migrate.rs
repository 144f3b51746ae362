// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `resnap migrate`.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Result, bail};
use futures::StreamExt as _;
use resnap_core::{ManifestPreference, SnapshotKey};
use resnap_unpacker::{Engine, Eviction, UnpackError, UnpackedImage};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::evict::{show as show_eviction, show_warning};
use super::signals::listen;
use super::warm::{Row, show as show_rows};
use crate::args::MigrateArguments;
use crate::config::Config;
use crate::connect::{evict_request, manifest_preference, working_engine};
use crate::documents::Overview;
use crate::exit_status::ExitStatus;
use crate::output::Output;
use crate::progress::Progress;
use crate::warm::{Target, Warmed, decide_all, warm};

#[derive(Serialize)]
struct Document<'a> {
    images: Vec<&'a Row>,
    /// `None` without `--evict`.
    eviction: Option<Eviction>,
    warning: Option<String>,
}

/// An image to be made ready on the target.
struct Item {
    image: String,
    /// The chain on the snapshotter that has the image; `None` if it has been evicted there.
    chain: Option<SnapshotKey>,
    state: State,
}

enum State {
    Pending,
    NoRoom(Row),
    Ready(Row),
    Ended(Row),
}

pub(crate) async fn run(
    config: &Config,
    arguments: MigrateArguments,
    output: &mut Output,
) -> Result<ExitStatus> {
    if arguments.from == arguments.to {
        bail!("--from and --to name the same snapshotter");
    }
    let (signals, stop) = listen()?;
    let read = async {
        let engine = working_engine(config).await?;
        engine.require_snapshotter(&arguments.to).await?;
        let items = items(&engine, &arguments).await?;
        anyhow::Ok((engine, items, manifest_preference(config).await?))
    };
    let Some(read) = stop.run_until_cancelled(read).await else {
        return Ok(ExitStatus::Cancelled);
    };
    let (engine, mut items, pick) = read?;
    let migration = Migration {
        config,
        engine: &engine,
        pick,
        progress: RefCell::new((!output.is_json()).then(|| Progress::new(items.len()))),
        arguments: &arguments,
        stop: &stop,
    };
    let mut eviction = arguments.evict.then(Eviction::default);
    let mut warning = None;
    loop {
        let decided = migration.decide(&mut items);
        let Some(decided) = stop.run_until_cancelled(decided).await else {
            break;
        };
        decided?;
        migration.unpack(&mut items).await;
        let Some(total) = &mut eviction else {
            break;
        };
        let evicted = migration.evict(&mut items);
        let Some(evicted) = stop.run_until_cancelled(evicted).await else {
            break;
        };
        let (evicted, warns) = evicted?;
        warning = warning.or(warns);
        let has_room = evicted.bytes > 0 && !arguments.dry_run;
        add(total, evicted);
        // What has left makes room for what had none.
        if !has_room || !items.iter_mut().any(retry) {
            break;
        }
    }
    signals.abort();
    let document = Document {
        images: items.iter().filter_map(Item::row).collect(),
        eviction,
        warning,
    };
    output.document(&document, |table| {
        show_rows(document.images.iter().copied(), table);
        if let Some(eviction) = &document.eviction {
            table.line(String::new());
            show_eviction(eviction, &arguments.from, arguments.dry_run, table);
        }
        show_warning(document.warning.as_deref(), table);
    })?;
    Ok(match stop.is_cancelled() {
        true => ExitStatus::Cancelled,
        false => status(&document, arguments.all),
    })
}

/// Returns the images to be made ready: one name of each config, and with an image also those that have
/// the same chain, as they are evicted together.
async fn items(engine: &Engine, arguments: &MigrateArguments) -> Result<Vec<Item>> {
    let unpacked = engine.unpacked_images(&arguments.from).await?;
    let item = |image: &UnpackedImage| Item {
        image: image.name().to_owned(),
        chain: Some(image.chain_id.clone()),
        state: State::Pending,
    };
    if arguments.all {
        return Ok(unpacked.iter().map(item).collect());
    }
    let mut items: Vec<Item> = Vec::new();
    for name in &arguments.images {
        let image = engine.resolve(name).await?.name;
        let named = |other: &&UnpackedImage| other.names.contains(&image);
        let chains = unpacked.iter().filter(named);
        let chains: Vec<_> = chains.map(|image| &image.chain_id).collect();
        let of_chain = unpacked.iter();
        let mut new: Vec<Item> = of_chain
            .filter(|image| chains.contains(&&image.chain_id))
            .map(item)
            .collect();
        if new.is_empty() {
            new.push(Item {
                image,
                chain: None,
                state: State::Pending,
            });
        }
        new.retain(|new| items.iter().all(|item| item.image != new.image));
        items.extend(new);
    }
    Ok(items)
}

/// The work on all images.
struct Migration<'a> {
    config: &'a Config,
    engine: &'a Engine,
    pick: ManifestPreference,
    progress: RefCell<Option<Progress>>,
    arguments: &'a MigrateArguments,
    stop: &'a CancellationToken,
}

impl Migration<'_> {
    /// Finds the pending images that are ready already or have no room, by one look at all of them.
    async fn decide(&self, items: &mut [Item]) -> Result<()> {
        let dir = &self.config.runtime_dir.value;
        let to = std::slice::from_ref(&self.arguments.to);
        let overview = Overview::read(self.engine, dir, Some(to)).await?;
        let mut pending: Vec<&mut Item> =
            items.iter_mut().filter(|item| item.is_pending()).collect();
        let images: Vec<String> = pending.iter().map(|item| item.image.clone()).collect();
        let targets: Vec<Target<'_>> = images.iter().map(|image| self.target(image)).collect();
        let decided = decide_all(&overview, &targets).await;
        for (item, decided) in pending.iter_mut().zip(decided) {
            if self.arguments.dry_run || !matches!(decided, Ok(Warmed::Would)) {
                item.state = self.state(&item.image, decided);
            }
        }
        Ok(())
    }

    fn target<'a>(&'a self, image: &'a str) -> Target<'a> {
        Target {
            image,
            snapshotter: &self.arguments.to,
            floor: self.arguments.min_free.unwrap_or_default(),
            pick: self.pick,
        }
    }

    fn state(&self, image: &str, warmed: Result<Warmed, UnpackError>) -> State {
        let state = match &warmed {
            Ok(Warmed::Ready | Warmed::Unpacked(_) | Warmed::Would) => State::Ready,
            Ok(Warmed::NoRoom { .. }) => State::NoRoom,
            Ok(Warmed::Skipped(_)) | Err(_) => State::Ended,
        };
        let MigrateArguments { to, all, .. } = self.arguments;
        state(Row::new(image, to, warmed, !all))
    }

    /// Makes the pending images ready, several at a time.
    async fn unpack(&self, items: &mut [Item]) {
        let jobs = self.arguments.jobs.map(usize::from);
        let jobs = jobs.unwrap_or(self.config.prewarm_jobs.value);
        let count = items.len();
        let pending: Vec<(usize, &mut Item)> = items
            .iter_mut()
            .enumerate()
            .filter(|(_, item)| item.is_pending())
            .collect();
        let mut done = count - pending.len();
        let mut ended = futures::stream::iter(pending)
            .map(|(number, item)| self.unpack_one(number, item))
            .buffer_unordered(jobs);
        while let Some(row) = ended.next().await {
            done += 1;
            if let Some(progress) = &*self.progress.borrow() {
                progress.note(&format!("{done} of {count} images: {row}"));
            }
        }
    }

    /// Makes one image ready, and returns a line about it.
    async fn unpack_one(&self, number: usize, item: &mut Item) -> String {
        let on_event = |event| {
            if let Some(progress) = &mut *self.progress.borrow_mut() {
                progress.show(number, &event);
            }
        };
        let warmed = warm(self.engine, &self.target(&item.image), self.stop, on_event).await;
        item.state = self.state(&item.image, warmed);
        let line = item
            .row()
            .map_or_else(String::new, |row| format!("{} {}", row.image, row.state));
        if let Some(progress) = &mut *self.progress.borrow_mut() {
            progress.finish(number);
        }
        line
    }

    /// Evicts the chains whose images are all ready.
    async fn evict(&self, items: &mut [Item]) -> Result<(Eviction, Option<String>)> {
        let MigrateArguments {
            from, to, dry_run, ..
        } = self.arguments;
        let waiting = items
            .iter()
            .filter(|item| !matches!(item.state, State::Ready(_)));
        let waiting: BTreeSet<SnapshotKey> =
            waiting.filter_map(|item| item.chain.clone()).collect();
        let mut images = Vec::new();
        for item in items {
            if let Some(_chain) = item.chain.take_if(|chain| !waiting.contains(chain)) {
                images.push(item.image.clone());
            }
        }
        let (mut request, warning) = evict_request(self.config, images, from).await?;
        request.dry_run = *dry_run;
        request.moved_to = (!dry_run).then(|| to.clone());
        Ok((self.engine.evict(&request).await?, warning))
    }
}

impl Item {
    fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending)
    }

    fn row(&self) -> Option<&Row> {
        match &self.state {
            State::Pending => None,
            State::NoRoom(row) | State::Ready(row) | State::Ended(row) => Some(row),
        }
    }
}

/// Returns whether the image had no room and is pending again.
fn retry(item: &mut Item) -> bool {
    let had_no_room = matches!(item.state, State::NoRoom(_));
    if had_no_room {
        item.state = State::Pending;
    }
    had_no_room
}

fn add(total: &mut Eviction, other: Eviction) {
    total.chains.extend(other.chains);
    total.snapshots += other.snapshots;
    total.bytes += other.bytes;
    total.inodes += other.inodes;
}

fn status(document: &Document<'_>, all: bool) -> ExitStatus {
    let chains = document
        .eviction
        .iter()
        .flat_map(|eviction| &eviction.chains);
    let mut refusals = chains.filter_map(|chain| chain.refusal.as_ref());
    // Of all images, some may not be evicted; one that was named fails.
    let is_refused = refusals.any(|refusal| !all || !refusal.is_permanent());
    match is_refused || document.images.iter().any(|row| row.has_failed()) {
        true => ExitStatus::Failed,
        false => ExitStatus::Done,
    }
}
