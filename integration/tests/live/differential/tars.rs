// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of random tars: few names, so that entries meet.

use std::fmt::Write as _;

use resnap_integration::image::Entry;

/// Few of these make an image, the lowest first.
pub(crate) type Tars = Vec<Vec<Entry>>;

/// Numbers that look random, the same for the same seed (`splitmix64`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True in so many cases of a hundred.
    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Returns the image of this number.
pub(crate) fn image(number: u64) -> Tars {
    let mut random = Random(number);
    let layers = 1 + random.below(5);
    (0..layers).map(|_| tar(&mut random)).collect()
}

/// The paths of a tar so far, and whether each is a directory.
type Known = Vec<(String, bool)>;

fn tar(random: &mut Random) -> Vec<Entry> {
    let mut known = Known::new();
    let count = 1 + random.below(10);
    (0..count).map(|_| entry(random, &mut known)).collect()
}

/// Returns a path, mostly one that makes sense: in no file, and known only if `again`.
fn pick(random: &mut Random, known: &Known, again: bool) -> String {
    for _ in 0..20 {
        let path = path(random);
        let is_in_file = known
            .iter()
            .any(|(known, is_directory)| !is_directory && path.starts_with(&format!("{known}/")));
        let is_known = known
            .iter()
            .any(|(known, _)| *known == path || known.starts_with(&format!("{path}/")));
        if random.percent(2) || (!is_in_file && (again || !is_known)) {
            return path;
        }
    }
    path(random)
}

fn entry(random: &mut Random, known: &mut Known) -> Entry {
    let which = random.below(100);
    let again = random.percent(30);
    let path = pick(random, known, again);
    let written = decorated(random, &path);
    let mut is_directory = false;
    let entry = match which {
        0..30 => file(random, &written),
        30..52 => {
            is_directory = true;
            Entry::dir(match random.percent(30) {
                true => format!("{written}/"),
                false => written,
            })
        }
        52..62 => {
            // Later entries may be below it.
            is_directory = random.percent(50);
            Entry::symlink(&written, target(random))
        }
        62..72 => {
            let files: Vec<&String> = known
                .iter()
                .filter(|(_, is_directory)| !is_directory)
                .map(|(path, _)| path)
                .collect();
            let target = match files.is_empty() || random.percent(5) {
                true => return meta(random, Entry::fifo(written)),
                false => files[random.below(files.len())].clone(),
            };
            Entry::hardlink(written, decorated(random, &target))
        }
        72..84 => {
            let again = random.percent(10);
            let path = pick(random, known, again);
            return meta(random, Entry::whiteout(path));
        }
        84..90 if !known.is_empty() => {
            let directories = known.iter().filter(|(_, is_directory)| *is_directory);
            let path = directories.map(|(path, _)| path).next_back().cloned();
            let path = path.unwrap_or_else(|| path_of_two(random));
            return meta(random, Entry::opaque(path));
        }
        90..92 => Entry::fifo(written),
        92..94 => Entry::char_device(written, 1, 3),
        94..96 => Entry::block_device(written, 7, 300),
        96 => Entry::new(0, written),
        97 => return Entry::dir("./"),
        _ => {
            is_directory = true;
            Entry::dir(written)
        }
    };
    known.retain(|(known, _)| *known != path);
    known.push((path, is_directory));
    meta(random, entry)
}

fn path_of_two(random: &mut Random) -> String {
    format!("{}/{}", random.of(&["a", "b"]), random.of(&["a", "b"]))
}

fn path(random: &mut Random) -> String {
    let names = ["a", "a", "a", "b", "b", "b", "c", "c", "d", "a-", "-\n"];
    let depth = 1 + random.below(3);
    let names: Vec<&str> = (0..depth).map(|_| random.of(&names)).collect();
    let mut path = names.join("/");
    if random.percent(2) {
        path.push_str(LONG);
    }
    path
}

/// Too long for the field of a header.
const LONG: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
    nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

/// Returns the path in one of the forms in which it may be written.
fn decorated(random: &mut Random, path: &str) -> String {
    match random.below(20) {
        0 => format!("./{path}"),
        1 => format!("/{path}"),
        2 => format!("../{path}"),
        3 => path.replacen('/', "//", 1),
        4 => path.replacen('/', "/../", 1),
        5 => format!("c/../{path}"),
        _ => path.to_owned(),
    }
}

fn target(random: &mut Random) -> String {
    let path = path(random);
    match random.below(8) {
        0 => format!("/{path}"),
        1 => format!("../{path}"),
        2 => format!("./{path}/"),
        3 => format!("{path}/.."),
        4 => format!("../../../{path}"),
        _ => path,
    }
}

fn file(random: &mut Random, path: &str) -> Entry {
    let sizes = [0, 1, 511, 512, 4096, 5000];
    let size = sizes[random.below(sizes.len())];
    let byte = random.next() as u8;
    Entry::file(path, vec![byte; size])
}

fn meta(random: &mut Random, entry: Entry) -> Entry {
    let modes = [0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o000, 0o600];
    let owners = [0, 1000, 65534, 3_000_000_000];
    let mut entry = entry
        .mode(modes[random.below(modes.len())])
        .owner(owners[random.below(4)], owners[random.below(4)])
        .mtime(1 + random.below(1_000_000_000) as i64);
    if random.percent(3) {
        entry = entry.mtime(-1000);
    }
    if random.percent(5) {
        entry = entry.pax("mtime", "12345.678901234");
    }
    if random.percent(10) {
        entry = entry.xattr(random.of(&["user.a", "user.b"]), [random.next() as u8]);
    }
    if random.percent(2) {
        entry = entry.xattr("trusted.a", "a");
    }
    if random.percent(5) {
        entry = entry.gnu_names();
    }
    entry
}

/// Returns a layer as text, an entry a line.
pub(crate) fn show(tars: &Tars) -> String {
    let mut text = String::new();
    for (index, tar) in tars.iter().enumerate() {
        for entry in tar {
            let shown = |bytes: &[u8]| bytes.escape_ascii().to_string().replace(LONG, "LONG");
            let (path, link) = (shown(&entry.path), shown(&entry.link));
            let kind = (entry.typeflag as char).escape_default();
            // A string takes it all.
            let _ = writeln!(text, "  {index}: {kind} {path} {link}");
        }
    }
    text
}
