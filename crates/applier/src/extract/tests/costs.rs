// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Bounds on the cost of hostile layers.

use std::sync::Arc;

use resnap_layer::{Metadata, Time};

use super::records::{Directory, Records};
use super::*;
use crate::beneath::open_beneath;
use crate::memory::{MemoryBudget, StopReason};

/// Returns the processor time of this thread in nanoseconds.
fn time(work: impl FnOnce()) -> u64 {
    let spent = || {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let nanoseconds = stat.split(' ').next().unwrap();
        nanoseconds.parse::<u64>().unwrap()
    };
    let begin = spent();
    work();
    spent() - begin
}

#[test]
fn siblings_do_not_slow_down_replacements() {
    let mut records = Records::new(CancellationToken::new().into());
    for number in 0..20_000 {
        let path = format!("a{number}").into_bytes();
        records.write(path.clone()).unwrap();
        records.add(path, Directory::default()).unwrap();
    }
    let mut forget = |path: &[u8]| time(|| (0..20_000).for_each(|_| records.forget(path)));
    let (apart, beside) = (forget(b"b"), forget(b"a"));
    assert!(beside < apart * 10, "{apart}, {beside}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_copy_is_listed_once() {
    const COUNT: usize = 600;
    let extract = |marker: &str| {
        let mut stream = tar();
        for number in 0..COUNT {
            stream = stream.file(format!("a/b/{number}"), "");
        }
        for _ in 0..COUNT {
            stream = stream.file(marker, "");
        }
        let bed = Bed::new();
        fs::create_dir_all(bed.at("a/b")).unwrap();
        time(|| bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap())
    };
    let (none, all) = (extract("x"), extract("a/.wh..wh..opq"));
    assert!(all < none * 5, "{none}, {all}");
}

#[test]
fn deep_lookups_cost_as_much_as_opening() {
    const DEPTH: usize = 400;
    const COUNT: usize = 4000;
    let lower = Bed::new();
    let deep = "d/".repeat(DEPTH);
    fs::create_dir_all(lower.at(&deep)).unwrap();
    let root = fs::File::open(lower.root()).unwrap().into();
    let lower = LowerDirs::open(&[lower.root()]).unwrap();
    let mut cursor = lower.cursor(XattrNamespace::Trusted, |_| false);
    let paths: Vec<_> = (0..COUNT).map(|leaf| format!("{deep}{leaf:04}")).collect();
    let opening = time(|| {
        for path in &paths {
            let opened = open_beneath(&root, path.as_bytes());
            assert_eq!(opened.unwrap_err(), Errno::NOENT);
        }
    });
    let lookups = time(|| {
        for path in &paths {
            assert_eq!(cursor.directory(path.as_bytes()).unwrap(), None);
        }
    });
    assert!(lookups < opening * 10, "{opening}, {lookups}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn cancellation_is_checked_for_each_directory() {
    let bed = Bed::new();
    let stream = tar().directory("d/").file("e/x", "");
    let token = CancellationToken::new();
    let begin = || {
        let (mode, namespace) = (WhiteoutMode::Upper, XattrNamespace::Trusted);
        Extraction::new(&bed.root(), mode, namespace, token.clone()).unwrap()
    };
    let (mut first, mut second) = (begin(), begin());
    let mut layer = Layer::new(&stream.bytes[..], Limits::default());
    first.add(&mut layer).unwrap();
    token.cancel();
    let finished = first.finish(&LowerDirs::default());
    assert!(
        matches!(finished, Err(Error::Stopped(StopReason::Cancelled))),
        "{finished:?}"
    );
    let mut layer = Layer::new(&stream.bytes[..0], Limits::default());
    second.write_entry(&directory("d", 0)).unwrap();
    let added = second.add(&mut layer);
    assert!(
        matches!(added, Err(Error::Stopped(StopReason::Cancelled))),
        "{added:?}"
    );
}

#[test]
fn cancellation_is_checked_for_each_entry() {
    let token = CancellationToken::new();
    let begin = |bed: &Bed| {
        let (mode, namespace) = (WhiteoutMode::Copy, XattrNamespace::Trusted);
        Extraction::new(&bed.root(), mode, namespace, token.clone()).unwrap()
    };
    let (bed, full) = (Bed::new(), Bed::new());
    fs::create_dir_all(full.at("d/e")).unwrap();
    fs::write(full.at("d/e/file"), "").unwrap();
    let (mut first, mut second) = (begin(&bed), begin(&full));
    token.cancel();
    let stream = tar().file("a", "").file("b", "");
    let mut layer = Layer::new(&stream.bytes[..], Limits::default());
    let added = first.add(&mut layer).map_err(Error::unwrap_stop_reason);
    assert!(matches!(added, Err(Error::Cancelled)), "{added:?}");
    assert!(!bed.at("a").exists());
    // The same for the files that one entry removes.
    let whiteout = Entry {
        kind: EntryKind::Whiteout,
        ..directory("d", 0)
    };
    let fault = second.write_entry(&whiteout).unwrap_err();
    let path = whiteout.path;
    let error = Error::Entry { path, fault }.unwrap_stop_reason();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(full.at("d/e/file").exists());
}

/// Returns a directory with an extended attribute of `bytes` bytes.
fn directory(path: &str, bytes: usize) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::Directory,
        metadata: Metadata {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: vec![resnap_layer::Xattr {
                name: b"user.a".to_vec(),
                value: path.bytes().cycle().take(bytes).collect(),
            }],
        },
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn memory_is_counted() {
    const LIMIT: u64 = 1 << 17;
    let token = CancellationToken::new();
    let begin = |mode| {
        let bed = Bed::new();
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        // One layer may take ten sixteenths.
        let budget = MemoryBudget::new(LIMIT / 10 * 16, Default::default());
        let memory = budget.layer(&Default::default(), is_turn);
        let guard = Guard::new(token.clone(), memory);
        let namespace = XattrNamespace::Trusted;
        let extraction = Extraction::new(&bed.root(), mode, namespace, guard).unwrap();
        (bed, extraction)
    };
    let file = |path: String| {
        let kind = EntryKind::Fifo;
        let path = path.into_bytes();
        Entry {
            path,
            kind,
            ..directory("", 0)
        }
    };
    type Next<'a> = &'a dyn Fn(usize) -> Entry;
    let cases: [(&str, WhiteoutMode, Next<'_>, std::ops::Range<usize>); 5] = [
        (
            "attributes",
            WhiteoutMode::Upper,
            &|number| directory(&number.to_string(), 25 << 10),
            4..7,
        ),
        (
            "implicit directories",
            WhiteoutMode::Upper,
            &|number| file(format!("{number}/x")),
            250..600,
        ),
        (
            "files of a copy",
            WhiteoutMode::Copy,
            &|number| file(number.to_string()),
            600..2000,
        ),
        (
            "replaced whiteouts",
            WhiteoutMode::Upper,
            &|number| {
                let kind = match number % 2 {
                    0 => EntryKind::Whiteout,
                    _ => EntryKind::Fifo,
                };
                let path = (number / 2).to_string().into_bytes();
                Entry {
                    path,
                    kind,
                    ..directory("", 0)
                }
            },
            1200..4000,
        ),
        (
            "nothing, for replaced directories",
            WhiteoutMode::Copy,
            &|number| match number % 3 {
                0 => directory("a", 12 << 10),
                1 => directory("a/b", 12 << 10),
                _ => file("a".to_owned()),
            },
            300..301,
        ),
    ];
    for (what, mode, next, want) in cases {
        let (_bed, mut extraction) = begin(mode);
        let failed = (0..want.end).find(|number| {
            let written = extraction.write_entry(&next(*number));
            let is_refused = matches!(written, Err(Fault::Stopped(StopReason::LayerMemory(_))));
            assert!(written.is_ok() || is_refused, "{what}: {written:?}");
            is_refused
        });
        let end = failed.unwrap_or(want.start);
        assert!(want.contains(&end), "{what}: {failed:?}");
    }
}
