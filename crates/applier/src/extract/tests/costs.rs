// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What hostile layers may cost.

use super::*;
use crate::memory::{Denied, Memory};

/// How long it keeps this thread at work; what others do does not count.
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
fn siblings_cost_replacing_nothing() {
    let (_alive, stop) = watch::channel(false);
    let mut records = Records::new(Stop(stop).into());
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
fn a_copy_is_looked_through_once() {
    const COUNT: usize = 600;
    let extract = |marker: &str| {
        let mut tape = Tape::default();
        for number in 0..COUNT {
            tape = tape.file(&format!("a/b/{number}"), "");
        }
        for _ in 0..COUNT {
            tape = tape.file(marker, "");
        }
        let bed = Bed::new();
        fs::create_dir_all(bed.at("a/b")).unwrap();
        time(|| bed.extract(Style::Copy, &tape.0, &[]).unwrap())
    };
    let (none, all) = (extract("x"), extract("a/.wh..wh..opq"));
    assert!(all < none * 5, "{none}, {all}");
}

#[test]
fn depth_costs_what_opening_costs() {
    const DEPTH: usize = 400;
    const COUNT: usize = 4000;
    let lower = Bed::new();
    let deep = "d/".repeat(DEPTH);
    fs::create_dir_all(lower.at(&deep)).unwrap();
    let root = fs::File::open(lower.root()).unwrap().into();
    let lower = Lower::open(&[lower.root()]).unwrap();
    let mut descent = lower.descend(false, |_| false);
    let paths: Vec<_> = (0..COUNT).map(|leaf| format!("{deep}{leaf:04}")).collect();
    let opening = time(|| {
        for path in &paths {
            assert!(open_below(&root, path.as_bytes()).is_err());
        }
    });
    let looking = time(|| {
        for path in &paths {
            assert_eq!(descent.directory(path.as_bytes()).unwrap(), None);
        }
    });
    assert!(looking < opening * 10, "{opening}, {looking}");
}

#[test]
fn nobody_waits_for_directories() {
    let bed = Bed::new();
    let tape = Tape::default().dir("d/").file("e/x", "");
    let (stopper, stop) = watch::channel(false);
    let begin = || Extraction::new(&bed.root(), Style::Upper, false, Stop(stop.clone())).unwrap();
    let (mut first, mut second) = (begin(), begin());
    let mut layer = Layer::new(&tape.0[..], Limits::default());
    first.add(&mut layer).unwrap();
    stopper.send_replace(true);
    let finished = first.finish(&Lower::default());
    assert!(
        matches!(finished, Err(Error::Denied(Denied::Stopped))),
        "{finished:?}"
    );
    let mut layer = Layer::new(&tape.0[..0], Limits::default());
    second.entry(&directory("d", 0)).unwrap();
    let added = second.add(&mut layer);
    assert!(
        matches!(added, Err(Error::Denied(Denied::Stopped))),
        "{added:?}"
    );
}

#[test]
fn nobody_waits_for_entries() {
    let (stopper, stop) = watch::channel(false);
    let begin =
        |bed: &Bed| Extraction::new(&bed.root(), Style::Copy, false, Stop(stop.clone())).unwrap();
    let (bed, full) = (Bed::new(), Bed::new());
    fs::create_dir_all(full.at("d/e")).unwrap();
    fs::write(full.at("d/e/file"), "").unwrap();
    let (mut first, mut second) = (begin(&bed), begin(&full));
    stopper.send_replace(true);
    let tape = Tape::default().file("a", "").file("b", "");
    let mut layer = Layer::new(&tape.0[..], Limits::default());
    let added = first.add(&mut layer).map_err(Error::settled);
    assert!(matches!(added, Err(Error::Stopped)), "{added:?}");
    assert!(!bed.at("a").exists());
    // Nor for what one entry removes.
    let whiteout = Entry {
        kind: EntryKind::Whiteout,
        ..directory("d", 0)
    };
    second.entry(&whiteout).unwrap_err();
    assert!(full.at("d/e/file").exists());
}

/// A directory with an extended attribute of so many bytes.
fn directory(path: &str, bytes: usize) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: vec![resnap_layer::Xattr {
            name: b"user.a".to_vec(),
            value: path.bytes().cycle().take(bytes).collect(),
        }],
    }
}

#[test]
fn memory_is_counted() {
    const LIMIT: u64 = 1 << 17;
    let (_alive, stop) = watch::channel(false);
    let begin = |style| {
        let bed = Bed::new();
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        // One layer may have ten sixteenths.
        let memory = Memory::new(LIMIT / 10 * 16);
        let allowance = memory.allow(&Default::default(), is_turn);
        let guard = Guard::new(Stop(stop.clone()), allowance);
        let extraction = Extraction::new(&bed.root(), style, false, guard).unwrap();
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
    let cases: [(&str, Style, Next<'_>, std::ops::Range<usize>); 5] = [
        (
            "attributes",
            Style::Upper,
            &|number| directory(&number.to_string(), 25 << 10),
            4..7,
        ),
        (
            "implicit directories",
            Style::Upper,
            &|number| file(format!("{number}/x")),
            250..600,
        ),
        (
            "what a copy has",
            Style::Copy,
            &|number| file(number.to_string()),
            600..2000,
        ),
        (
            "whiteouts that gave way",
            Style::Upper,
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
            "nothing, for what is replaced",
            Style::Copy,
            &|number| match number % 3 {
                0 => directory("a", 12 << 10),
                1 => directory("a/b", 12 << 10),
                _ => file("a".to_owned()),
            },
            300..301,
        ),
    ];
    for (what, style, next, want) in cases {
        let (_bed, mut extraction) = begin(style);
        let failed = (0..want.end).find(|number| extraction.entry(&next(*number)).is_err());
        let end = failed.unwrap_or(want.start);
        assert!(want.contains(&end), "{what}: {failed:?}");
    }
}
