// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whether a layer states a directory.
//!
//! A layer that has a file in a directory need not have an entry for the directory. Whoever unpacks it makes
//! the directory, with the mode, owner and attributes that it has below, and then writes to it: so its time
//! is later than that of its snapshot. A time that an entry gives a directory is earlier, or, if the clocks
//! of builders are wrong, later than the last change of the directory.

use resnap_layer::{Metadata, Time as Point};

use crate::copy_fault::EntryFault;
use crate::xattr::has_default_acl;

/// The times of a directory and its snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    /// The last modification of its content, which can be set.
    pub(super) modified: Point,
    /// The last change, which cannot be set.
    pub(super) changed: Point,
    /// The creation of the snapshot.
    pub(super) created: Point,
}

/// The entry of a directory in the layer.
#[derive(Debug, PartialEq)]
pub(super) enum State {
    /// An entry with this metadata.
    Stated(Metadata),
    /// No entry: whoever writes the layer makes the directory for what is in it.
    Unstated,
}

/// The metadata of a directory that no layer states.
fn default() -> Metadata {
    Metadata {
        mode: 0o755,
        ..Metadata::default()
    }
}

/// Returns whether two directories have the same metadata except for the time.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let of = |metadata: &Metadata| (metadata.mode, metadata.uid, metadata.gid);
    of(one) == of(other) && one.xattrs == other.xattrs
}

/// Returns the entry of a directory. `below` is the metadata of the directory below, if there is one.
/// `is_empty` is whether nothing in the layer makes the directory.
pub(super) fn state(
    own: Metadata,
    below: Option<Metadata>,
    time: Time,
    is_empty: bool,
) -> Result<State, EntryFault> {
    let at = |point: Point| (point.seconds, point.nanoseconds);
    let is_written = at(time.created) <= at(time.modified) && at(time.modified) <= at(time.changed);
    if !is_written {
        return Ok(State::Stated(own));
    }
    let has_below = below.is_some();
    let expected = below.unwrap_or_else(default);
    if is_same(&own, &expected) {
        // A directory whose new files would inherit a list cannot be made for what is in it.
        return Ok(match is_empty || has_default_acl(&expected.xattrs) {
            true => State::Stated(expected),
            false => State::Unstated,
        });
    }
    let is_default = (own.mode, own.uid, own.gid) == (0o755, 0, 0);
    match is_default && has_below {
        true => Err(EntryFault::Parentless),
        // Written by a mount of the snapshot, or with a time between.
        false => Ok(State::Stated(own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_stated_by_their_times() {
        let of = |mode, uid, seconds| Metadata {
            mode,
            uid,
            mtime: Point {
                seconds,
                nanoseconds: 0,
            },
            ..Metadata::default()
        };
        let entry = |seconds| of(0o755, 0, seconds);
        let decide = |own: Metadata, below, is_empty| {
            let time = Time {
                modified: own.mtime,
                changed: of(0, 0, 30).mtime,
                created: of(0, 0, 20).mtime,
            };
            state(own, below, time, is_empty)
        };
        let stated = |metadata| Ok(State::Stated(metadata));
        for (own, below, is_empty, expected) in [
            // Set by an entry, also to a time in the future.
            (entry(19), None, false, stated(entry(19))),
            (entry(31), None, false, stated(entry(31))),
            (entry(19), Some(of(0o700, 9, 1)), false, stated(entry(19))),
            // Written.
            (entry(20), None, false, Ok(State::Unstated)),
            (entry(30), Some(entry(1)), false, Ok(State::Unstated)),
            (
                of(0o700, 9, 25),
                Some(of(0o700, 9, 1)),
                false,
                Ok(State::Unstated),
            ),
            // Nothing makes it.
            (entry(25), None, true, stated(entry(0))),
            (entry(25), Some(entry(1)), true, stated(entry(1))),
            // Written, but not as its parent is.
            (
                of(0o700, 9, 25),
                Some(entry(1)),
                false,
                stated(of(0o700, 9, 25)),
            ),
            (of(0o700, 9, 25), None, false, stated(of(0o700, 9, 25))),
            (
                entry(25),
                Some(of(0o700, 0, 1)),
                false,
                Err(EntryFault::Parentless),
            ),
            (
                entry(25),
                Some(of(0o755, 9, 1)),
                false,
                Err(EntryFault::Parentless),
            ),
        ] {
            let decided = decide(own.clone(), below.clone(), is_empty);
            assert_eq!(decided, expected, "{own:?} {below:?}");
        }
    }
}
