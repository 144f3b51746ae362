// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The records of images: what is set, removed, and kept until it is set.

use std::time::{Duration, SystemTime};

use resnap_core::{Digest, Image, Labels, LeaseId, Resource, labels};
use rusqlite::Transaction;

use crate::fault::Fault;
use crate::garbage::{collect, collect_leniently};
use crate::index::Index;
use crate::lease_rows::{delete, insert};
use crate::resource;
use crate::state::State;

/// Keeps the content of an image that has no record yet.
pub(crate) fn keep(state: &State, image: &Image, time: Duration) -> Result<(), Fault> {
    let lease = keeping(image);
    let target = Resource::Content(image.target.digest.clone());
    let expiry = humantime::format_rfc3339_seconds(SystemTime::now() + time).to_string();
    let labels = Labels::from([(labels::GC_EXPIRE.to_owned(), expiry)]);
    state.store.write(|transaction| {
        delete(transaction, &lease)?;
        insert(transaction, &lease, &labels)?;
        resource::add(transaction, &lease, &target)
    })
}

/// Records an image, and ends what kept it.
pub(crate) fn set(state: &State, image: &Image) -> Result<(), Fault> {
    let was_kept = change(state, |index, transaction| {
        index.set(&image.name, Some(&image.target));
        delete(transaction, &keeping(image))
    })?;
    if was_kept {
        collect_leniently(state);
    }
    Ok(())
}

/// Removes the record of an image, and what only it kept.
pub(crate) fn remove(state: &State, name: &str) -> Result<(), Fault> {
    change(state, |index, _| match index.set(name, None) {
        true => Ok(()),
        false => Err(Fault::missing()),
    })?;
    collect(state, SystemTime::now())
}

/// Changes the index. The transaction is the lock of its file.
fn change<T>(
    state: &State,
    change: impl FnOnce(&mut Index, &Transaction<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    state.store.write(|transaction| {
        let mut index = Index::read(&state.layout)?;
        let changed = change(&mut index, transaction)?;
        index.write(&state.layout)?;
        Ok(changed)
    })
}

/// Returns the lease that keeps an image without a record. It is the same for all who make that image ready, so that
/// the next of them ends what a killed one has left.
fn keeping(image: &Image) -> LeaseId {
    let text = format!("{}\n{}", image.target.digest, image.name);
    let digest = Digest::sha256(text.as_bytes());
    LeaseId(format!("image-{}", digest.encoded()).into())
}
