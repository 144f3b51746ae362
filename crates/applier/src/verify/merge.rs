// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Two walks, through an image of the layer and through the committed layer, side by side.

use std::cmp::Ordering;
use std::io;

use resnap_core::{Differences, error_chain};
use resnap_erofs::ImageError;
use resnap_layer::EntryKind;

use super::content::first_difference;
use super::item::{Origin, differences, shown};
use super::observed::Observations;
use super::order::order;
use super::skeleton::Digests;
use crate::copy_fault::CopyFault;
use crate::error::{Error, IoContext as _, StreamError};
use crate::pace::Pace;
use crate::sibling::{Item, Walk};

/// The layer as it should be.
pub(super) struct ExpectedLayer {
    pub(super) walk: Walk,
    /// The digests of the files' data.
    pub(super) digests: Digests,
    pub(super) observations: Observations,
}

/// Two walks.
pub(super) struct Merge<'a> {
    expected: ExpectedLayer,
    found: Walk,
    pace: &'a Pace,
    differences: Differences,
    buffer: Vec<u8>,
    /// Whether what follows in the committed layer cannot be read.
    is_cut: bool,
}

impl<'a> Merge<'a> {
    pub(super) fn new(expected: ExpectedLayer, found: Walk, pace: &'a Pace) -> Self {
        Self {
            expected,
            found,
            pace,
            differences: Differences::default(),
            buffer: Vec::new(),
            is_cut: false,
        }
    }

    /// Compares all entries, and returns the differences.
    pub(super) fn compare(mut self) -> Result<Differences, Error> {
        let (mut expected, mut found) = (self.next_expected()?, self.next_found()?);
        while !self.is_cut {
            let next = match (&expected, &found) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(expected), Some(found)) => order(&expected.entry, &found.entry),
            };
            match next {
                Ordering::Less => self.missing(expected.as_ref()),
                Ordering::Greater => self.add(found.as_ref(), "is not in the layer"),
                Ordering::Equal => {
                    if let (Some(expected), Some(found)) = (&expected, &found) {
                        self.item(expected, found)?;
                    }
                }
            }
            if next.is_le() {
                expected = self.next_expected()?;
            }
            if next.is_ge() {
                found = self.next_found()?;
            }
        }
        Ok(self.differences)
    }

    /// Adds an item of the layer that is missing.
    fn missing(&mut self, item: Option<&Item>) {
        let entry = item.map(|item| &item.entry);
        let is_unsure = entry.is_some_and(|entry| {
            entry.kind == EntryKind::Opaque && self.expected.observations.is_whited_out(&entry.path)
        });
        if !is_unsure {
            self.add(item, "is missing");
        }
    }

    /// Adds a difference that concerns a whole item.
    fn add(&mut self, item: Option<&Item>, what: &str) {
        let Some(entry) = item.map(|item| &item.entry) else {
            return;
        };
        let of = match entry.kind {
            // overlayfs ignores it there.
            EntryKind::Opaque if entry.path.is_empty() => return,
            EntryKind::Opaque => "the opaque marker of ",
            EntryKind::Whiteout => "the whiteout of ",
            _ => "",
        };
        self.differences
            .add(|| format!("{of}{} {what}", shown(&entry.path)));
    }

    fn item(&mut self, expected: &Item, found: &Item) -> Result<(), Error> {
        let path = &expected.entry.path;
        let observations = &self.expected.observations;
        let origin = match expected.entry.kind {
            EntryKind::Directory if path.is_empty() || !observations.is_stated(path) => {
                Origin::MadeUp
            }
            EntryKind::Directory if observations.is_repeated(path) => Origin::Repeated,
            _ => Origin::Stated,
        };
        let mut all = differences(&expected.entry, &found.entry, origin);
        if expected.entry.kind == found.entry.kind
            && let (Some(expected), Some(found)) = (&expected.data, &found.data)
        {
            let digests = &self.expected.digests;
            let first = first_difference(expected, found, digests, &mut self.buffer, self.pace);
            match first {
                Ok(None) => {}
                Ok(Some(at)) => all.push(format!("has other content from byte {at} on")),
                Err(error) if is_damage(&error) => all.push(error_chain(&error)),
                Err(error) => return Err(error).context("read a file of the committed layer"),
            }
        }
        if !all.is_empty() {
            self.differences
                .add(|| format!("{} {}", shown(path), all.join(", ")));
        }
        Ok(())
    }

    fn next_expected(&mut self) -> Result<Option<Item>, Error> {
        let next = self.expected.walk.next().map_err(io::Error::from);
        next.context("read the layer")
    }

    /// Returns the next item of the committed layer. What cannot be read because of what is in it is a
    /// difference, and the last that is found.
    fn next_found(&mut self) -> Result<Option<Item>, Error> {
        let (path, why) = match self.found.next() {
            Ok(next) => return Ok(next),
            Err(StreamError::Copy(CopyFault::Entry { path, fault, .. })) => {
                (path, fault.to_string())
            }
            Err(StreamError::Source(path, error)) if is_damage(&error) => {
                (path, error_chain(&error))
            }
            Err(error) => {
                return Err(io::Error::from(error)).context("read the committed layer");
            }
        };
        self.is_cut = true;
        self.differences
            .add(|| format!("{}: {why}; what follows was not compared", shown(&path)));
        Ok(None)
    }
}

/// Returns whether the content of an image or file is the reason.
fn is_damage(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(error) => is_damaged_image(error),
        None => error.kind() == io::ErrorKind::UnexpectedEof,
    }
}

/// Returns whether an image is malformed, and not only unknown.
pub(super) fn is_damaged_image(error: &ImageError) -> bool {
    match error {
        ImageError::Corrupt { .. } => true,
        ImageError::Read { source, .. } => source.kind() == io::ErrorKind::UnexpectedEof,
        _ => false,
    }
}
