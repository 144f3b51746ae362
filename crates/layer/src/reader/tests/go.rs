// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whether streams are read as Go's `archive/tar` and containerd's `pkg/archive` read them.
//!
//! `go.tsv` has a stream on each line, written as a recipe; the FNV-1a of its bytes, by which an
//! answer belongs to them; what Go 1.26 answers; and the name of the fault, where Go takes a stream
//! that is refused here on purpose. `go/main.go` is the program that answers. It knows of containerd
//! how names are cleaned, which are whiteouts, and what fails because no file can be like that.
//!
//! A recipe is made of tokens, separated by spaces:
//!
//! | token | what |
//! |---|---|
//! | `KIND:NAME:DATA` | a header with its data, filled up to a block |
//! | `...@FIELD=BYTES` | with these bytes in a field, by its name in [`FIELDS`]; the checksum is right |
//! | `...@gnu` | of GNU's format |
//! | `pax:KEY=VALUE;KEY=VALUE` | an extended header |
//! | `global:NAME:KEY=VALUE;...` | a global one |
//! | `raw:BYTES` | these bytes |
//! | `cut:N` | the end of the stream, which has N bytes; else there is a trailer |
//!
//! Any byte may be `%XX`, and `{BYTES*N}` are N times these.
//!
//! To ask Go anew or about other streams: `go build -o oracle main.go`, and then, with
//! `RESNAP_GO_TAR=oracle` in the environment, `cargo test -p resnap-layer go:: -- --ignored`. One of
//! the tests completes `go.tsv`, where a new line needs no more than a recipe; the other compares
//! random streams, of `RESNAP_GO_SEED`, as many as `RESNAP_GO_STREAMS` says.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::*;
use crate::testing::record;

mod random;

const TABLE: &str = include_str!("go.tsv");

/// The positions of the fields of a header.
const FIELDS: [(&str, usize); 18] = [
    ("mode", 100),
    ("uid", 108),
    ("gid", 116),
    ("size", 124),
    ("mtime", 136),
    ("sum", 148),
    ("link", 157),
    ("magic", 257),
    ("major", 329),
    ("minor", 337),
    ("prefix", 345),
    ("ctime", 357),
    ("sparse", 386),
    ("pair2", 410),
    ("star-atime", 476),
    ("more", 482),
    ("real", 483),
    ("star", 508),
];

/// Data of larger files is not compared.
const COMPARED: u64 = 1 << 22;

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match first {
            '%' => {
                bytes.push(u8::from_str_radix(&rest[1..3], 16).unwrap());
                rest = &rest[3..];
            }
            '{' => {
                let (repeated, after) = rest[1..].split_once('}').unwrap();
                let (what, count) = repeated.split_once('*').unwrap();
                bytes.extend(self::bytes(what).repeat(count.parse().unwrap()));
                rest = after;
            }
            _ => {
                bytes.push(u8::try_from(first).unwrap());
                rest = &rest[1..];
            }
        }
    }
    bytes
}

fn records(text: &str) -> Vec<u8> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs
        .flat_map(|(key, value)| record(bytes(key), &bytes(value)))
        .collect()
}

fn stream(recipe: &str) -> Vec<u8> {
    let mut tar = Tar::default();
    for token in recipe.split(' ') {
        let (kind, rest) = token.split_once(':').unwrap();
        match kind {
            "cut" => {
                tar.bytes.truncate(rest.parse().unwrap());
                return tar.bytes;
            }
            "raw" => tar.bytes.extend(bytes(rest)),
            "pax" => tar = tar.with(b'x', "pax", &records(rest), &[]),
            _ => tar = entry(tar, kind, rest),
        }
    }
    tar.end()
}

fn entry(tar: Tar, kind: &str, rest: &str) -> Tar {
    let mut parts = rest.split('@');
    let (name, data) = parts.next().unwrap().split_once(':').unwrap();
    let (kind, data) = match kind {
        "global" => (b'g', records(data)),
        _ => (bytes(kind)[0], bytes(data)),
    };
    let changes: Vec<(usize, Vec<u8>)> = parts
        .map(|change| match change.split_once('=') {
            None => (257, b"ustar  \0".to_vec()),
            Some((field, value)) => {
                let known = FIELDS.iter().find(|known| known.0 == field).unwrap();
                (known.1, bytes(value))
            }
        })
        .collect();
    let changes: Vec<(usize, &[u8])> = changes
        .iter()
        .map(|(at, value)| (*at, &value[..]))
        .collect();
    tar.with(kind, bytes(name), &data, &changes)
}

/// Bytes as in a URL; only their FNV-1a if they are many.
fn escaped(bytes: &[u8]) -> String {
    if bytes.len() > 100 {
        return format!("#{:016x}", fnv(bytes.iter().copied()));
    }
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(*byte));
            }
            b' ' => text.push('+'),
            _ => write!(text, "%{byte:02X}").unwrap(),
        }
    }
    text
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Returns an entry as the program in Go writes it.
fn shown(entry: &Entry, data: &Data) -> String {
    let (kind, detail) = match &entry.kind {
        EntryKind::Whiteout => {
            let (parents, name) = crate::path::split(&entry.path);
            let slash: &[u8] = if parents.is_empty() { b"" } else { b"/" };
            return format!("w {}", escaped(&[parents, slash, b".wh.", name].concat()));
        }
        EntryKind::Opaque => {
            let slash: &[u8] = if entry.path.is_empty() { b"" } else { b"/" };
            let marker = [&entry.path[..], slash, b".wh..wh..opq"].concat();
            return format!("w {}", escaped(&marker));
        }
        EntryKind::File(file) if file.size > COMPARED => ('0', file.size.to_string()),
        EntryKind::File(file) => {
            let mut content = vec![0; usize::try_from(file.size).unwrap()];
            for (offset, piece) in data {
                let offset = usize::try_from(*offset).unwrap();
                content[offset..offset + piece.len()].copy_from_slice(piece);
            }
            ('0', format!("{}.{:016x}", file.size, fnv(content)))
        }
        EntryKind::Hardlink(target) => ('1', escaped(target)),
        EntryKind::Symlink(target) => ('2', escaped(target)),
        EntryKind::Character { major, minor } => ('3', format!("{major}.{minor}")),
        EntryKind::Block { major, minor } => ('4', format!("{major}.{minor}")),
        EntryKind::Directory => ('5', "-".to_owned()),
        EntryKind::Fifo => ('6', "-".to_owned()),
    };
    let Metadata {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = &entry.metadata;
    let xattrs: Vec<String> = xattrs
        .iter()
        .map(|xattr| format!("{}={}", escaped(&xattr.name), escaped(&xattr.value)))
        .collect();
    let time = format!("{}.{}", mtime.seconds, mtime.nanoseconds);
    let path = escaped(&entry.path);
    format!(
        "{kind} {path} {mode:o} {uid} {gid} {time} {detail} {}",
        xattrs.join(",")
    )
}

/// Returns how this crate reads a stream, or the name of the fault.
fn ours(stream: &[u8]) -> Result<String, &'static str> {
    let entries = read(stream).map_err(|error| name(&error.fault))?;
    let entries: Vec<String> = entries
        .iter()
        .map(|(entry, data)| shown(entry, data))
        .collect();
    Ok(entries.join(";"))
}

/// The faults for which streams may be refused that Go takes.
const ON_PURPOSE: [&str; 9] = [
    "ambiguous",
    "device",
    "end",
    "limit",
    "name",
    "owner",
    "sparse",
    "time",
    "type",
];

fn name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Ambiguous(_) => "ambiguous",
        Fault::Device { .. } => "device",
        Fault::Limit { .. } => "limit",
        Fault::Name(_) => "name",
        Fault::Number("mtime" | "atime" | "ctime") => "time",
        Fault::Owner { .. } => "owner",
        Fault::Sparse(_) => "sparse",
        Fault::Type(_) => "type",
        Fault::Truncated => "end",
        _ => "malformed",
    }
}

/// Returns the objection to how this crate reads a stream, given Go's answer.
fn difference(stream: &[u8], go: &str) -> Result<&'static str, String> {
    match (ours(stream), go) {
        (Err(_), "error") => Ok(""),
        (Err(fault), _) if ON_PURPOSE.contains(&fault) => Ok(fault),
        (Err(fault), _) => Err(format!("refused as {fault}, which Go reads as {go}")),
        (Ok(ours), "error") => Err(format!("read as {ours}, which Go refuses")),
        (Ok(ours), go) if ours == without_globals(go) => Ok(""),
        (Ok(ours), go) => Err(format!("read as {ours}, by Go as {go}")),
    }
}

/// Global headers count for nothing where they come first and are in the root: containerd has no
/// parents to make there, and nothing to remove.
fn without_globals(go: &str) -> String {
    let is_nothing = |entry: &&str| {
        let name = entry.strip_prefix("g ");
        name.is_some_and(|name| !name.contains("%2F"))
    };
    let entries: Vec<&str> = go.split(';').skip_while(is_nothing).collect();
    entries.join(";")
}

#[test]
fn table() {
    let mut faults = Vec::new();
    let mut count = 0;
    for line in TABLE.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [recipe, sum, go, refused] = columns[..] else {
            panic!("not four columns: {line}");
        };
        let stream = stream(recipe);
        assert_eq!(
            format!("{:016x}", fnv(stream.iter().copied())),
            sum,
            "{recipe}"
        );
        match difference(&stream, go) {
            Ok(name) if name == refused => {}
            Ok(name) => faults.push(format!("{recipe}: refused as {name:?}, not {refused:?}")),
            Err(difference) => faults.push(format!("{recipe}: {difference}")),
        }
        count += 1;
    }
    assert!(
        faults.is_empty(),
        "{} of {count}:\n{}",
        faults.len(),
        faults.join("\n")
    );
    assert!(count >= 500);
}

/// Returns Go's answers to streams.
fn ask(streams: impl Iterator<Item = Vec<u8>> + Send) -> Vec<String> {
    let program = std::env::var("RESNAP_GO_TAR").expect("RESNAP_GO_TAR is not set");
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let answers = std::thread::scope(|scope| {
        scope.spawn(move || {
            for stream in streams {
                let mut line = String::with_capacity(2 * stream.len() + 1);
                for byte in stream {
                    write!(line, "{byte:02x}").unwrap();
                }
                line.push('\n');
                input.write_all(line.as_bytes()).unwrap();
            }
        });
        output.lines().map(Result::unwrap).collect()
    });
    assert!(child.wait().unwrap().success());
    answers
}

#[test]
#[ignore = "needs the program in Go; writes go.tsv"]
fn table_anew() {
    let recipes: Vec<&str> = TABLE
        .lines()
        .filter_map(|line| line.split('\t').next())
        .collect();
    let answers = ask(recipes.iter().map(|recipe| stream(recipe)));
    assert_eq!(answers.len(), recipes.len());
    let mut table = String::new();
    for (recipe, go) in recipes.iter().zip(answers) {
        let stream = stream(recipe);
        let refused = difference(&stream, &go).unwrap_or("?");
        let sum = fnv(stream);
        writeln!(table, "{recipe}\t{sum:016x}\t{go}\t{refused}").unwrap();
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/reader/tests/go.tsv");
    std::fs::write(file, table).unwrap();
}
