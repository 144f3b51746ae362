// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, server};
use http::{HeaderMap, Request};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::AnyAuthority;

const PREFACE_TEXT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A field in one of the encodings that a client may choose.
#[derive(Debug, Clone)]
enum Written {
    /// A reference to the last entry of the table with this value, if there is one.
    Referred(String, Vec<u8>),
    /// A literal that is added to the table.
    Indexed(String, Vec<u8>),
    Plain(String, Vec<u8>),
    Never(String, Vec<u8>),
}

/// An encoder whose table is unlimited, since no test fills it.
#[derive(Default)]
struct Writer(Vec<(String, Vec<u8>)>);

impl Writer {
    fn write(&mut self, fields: &[Written]) -> Vec<u8> {
        let mut block = Vec::new();
        for field in fields {
            let (first, name, value) = match field {
                Written::Referred(name, value) => {
                    let same = |entry: &(String, Vec<u8>)| entry.0 == *name && entry.1 == *value;
                    if let Some(at) = self.0.iter().rposition(same) {
                        integer(0x80, 7, 61 + self.0.len() - at, &mut block);
                        continue;
                    }
                    (0, name, value)
                }
                Written::Indexed(name, value) => {
                    self.0.push((name.clone(), value.clone()));
                    (0x40, name, value)
                }
                Written::Plain(name, value) => (0, name, value),
                Written::Never(name, value) => (0x10, name, value),
            };
            block.push(first);
            for text in [name.as_bytes(), value] {
                integer(0, 7, text.len(), &mut block);
                block.extend(text);
            }
        }
        block
    }
}

fn integer(first: u8, prefix: u32, number: usize, out: &mut Vec<u8>) {
    let mask = (1 << prefix) - 1;
    if number < mask {
        return out.push(first | u8::try_from(number).unwrap());
    }
    out.push(first | u8::try_from(mask).unwrap());
    let mut rest = number - mask;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
}

/// Returns the fields of a request: the authority and others.
fn request(authority: &[u8], others: &[Written]) -> Vec<Written> {
    let referred = |name: &str, value: &[u8]| Written::Referred(name.to_owned(), value.to_vec());
    let mut fields = vec![
        referred(":method", b"POST"),
        referred(":scheme", b"http"),
        referred(":path", b"/a"),
        Written::Indexed(":authority".to_owned(), authority.to_vec()),
    ];
    fields.extend_from_slice(others);
    fields
}

/// Splits a block into frames of at most this length, with padding and priority on the first.
fn frames_of(stream: u32, block: &[u8], length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = block;
    let mut kind = HEADERS;
    loop {
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        let mut payload = piece.to_vec();
        let mut flags = if rest.is_empty() { END_HEADERS } else { 0 };
        if kind == HEADERS {
            flags |= PADDED | PRIORITY | END_STREAM;
            payload = [&[3, 0, 0, 0, 0, 7], piece, &[0; 3]].concat();
        }
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        kind = CONTINUATION;
        if rest.is_empty() {
            return out;
        }
    }
}

/// Returns the first bytes of a connection.
fn beginning() -> Vec<u8> {
    [PREFACE_TEXT, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()
}

/// Returns the requests that h2 reads from these bytes, which arrive in pieces.
fn read(bytes: Vec<u8>, piece: usize) -> Result<Vec<Request<()>>, h2::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        // Time passes when there is nothing else to do, however slow the machine is.
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut client, stream) = tokio::io::duplex(1 << 20);
        let write = async {
            for piece in bytes.chunks(piece.max(1)) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        };
        let serve = async {
            let mut connection = server::Builder::new()
                .max_header_list_size(1 << 20)
                .handshake::<_, Bytes>(AnyAuthority::new(stream))
                .await?;
            let mut requests = Vec::new();
            // h2 reports malformed requests to the client only.
            while let Ok(Some(next)) =
                tokio::time::timeout(Duration::from_millis(20), connection.accept()).await
            {
                requests.push(next?.0.map(drop));
            }
            Ok(requests)
        };
        let (client, requests): (DuplexStream, _) = tokio::join!(write, serve);
        drop(client);
        requests
    })
}

fn headers(fields: &[Written]) -> HeaderMap {
    let pairs = fields.iter().map(|field| match field {
        Written::Referred(name, value)
        | Written::Indexed(name, value)
        | Written::Plain(name, value)
        | Written::Never(name, value) => (name, value),
    });
    let mut map = HeaderMap::new();
    for (name, value) in pairs.filter(|(name, _)| !name.starts_with(':')) {
        let name: http::HeaderName = name.parse().unwrap();
        map.append(name, value.as_slice().try_into().unwrap());
    }
    map
}

/// Authorities that other servers accept.
const ODD: [&[u8]; 9] = [
    b"%2Frun%2Fcri.sock",
    b"/run/cri.sock",
    b"unix:/run/x.sock",
    b"",
    b"a b",
    "bücher".as_bytes(),
    b"[::1",
    b"a/b@c",
    b"\"<>^`{|}",
];

#[test]
fn any_authority_is_taken() {
    for odd in ODD {
        let mut writer = Writer::default();
        let mut bytes = beginning();
        let fields = [request(b"good:1", &[]), request(odd, &[])];
        for (stream, fields) in [
            (1, &fields[0]),
            (3, &fields[1]),
            (5, &fields[0]),
            (7, &fields[1]),
        ] {
            bytes.extend(frames_of(stream, &writer.write(fields), 1 << 14));
        }
        let requests = read(bytes, 1 << 20).unwrap();
        let authorities: Vec<_> = requests
            .iter()
            .map(|request| request.uri().authority().map_or("", |text| text.as_str()))
            .collect();
        let all = ["good:1", "localhost", "good:1", "localhost"];
        assert_eq!(authorities, all, "{odd:?}");
    }
    // As a reference to the static table, and as an entry whose name is one.
    for block in [
        &b"\x83\x86\x84\x81"[..],
        b"\x83\x86\x84\x41\x01/",
        b"\x83\x86\x84\x41\x81\x63",
    ] {
        let bytes = [
            beginning(),
            frames_of(1, block, 100),
            frames_of(3, block, 1),
        ]
        .concat();
        assert_eq!(read(bytes, 1).unwrap().len(), 2);
    }
}

#[test]
fn unchanged_blocks_pass_as_they_are() {
    let mut writer = Writer::default();
    let some = [Written::Indexed("x-some".to_owned(), b"1".to_vec())];
    let mut bytes = beginning();
    for stream in [1, 3, 5] {
        bytes.extend(frames_of(
            stream,
            &writer.write(&request(b"a:1", &some)),
            10,
        ));
        bytes.extend([0, 0, 3, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    }
    let (mut frames, mut rest) = (Frames::default(), &bytes[..]);
    while !rest.is_empty() {
        let Step::Pass(count) = frames.step(rest) else {
            panic!("a block was changed, or is incomplete");
        };
        rest = &rest[count..];
    }
}

#[test]
fn malformed_frames_end_the_connection() {
    let odd = frames_of(1, &Writer::default().write(&request(b"/", &[])), 100);
    let cut = |mut frames: Vec<u8>| {
        // The header block does not end before another frame.
        frames[4] &= !END_HEADERS;
        [frames, vec![0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()
    };
    let good = frames_of(3, &Writer::default().write(&request(b"a", &[])), 100);
    let oversized = [
        &[0xff, 0, 0, HEADERS, END_HEADERS, 0, 0, 0, 3][..],
        &[0; 0xff_0000],
    ];
    let empty = [0, 0, 0, CONTINUATION, 0, 0, 0, 0, 3].repeat(MAX_BLOCK / 9 + 1);
    let too_many = [&[0, 0, 0, HEADERS, 0, 0, 0, 0, 3][..], &empty];
    for (broken, expected) in [
        (frames_of(3, b"\x80", 100), Reason::PROTOCOL_ERROR),
        (
            frames_of(3, b"\xff\x80\x80\x01", 100),
            Reason::PROTOCOL_ERROR,
        ),
        (cut(good), Reason::PROTOCOL_ERROR),
        (oversized.concat(), Reason::FRAME_SIZE_ERROR),
        (too_many.concat(), Reason::ENHANCE_YOUR_CALM),
    ] {
        // After a rewritten block, bytes that are malformed are replaced too.
        for (before, expected) in [(&[][..], expected), (&odd, Reason::PROTOCOL_ERROR)] {
            let bytes = [&beginning(), before, &broken].concat();
            let reason = read_to_the_end(bytes).unwrap_err().reason();
            assert_eq!(reason, Some(expected), "{:x?}", &broken[..9]);
        }
    }
}

/// Returns the error that ends the connection.
fn read_to_the_end(bytes: Vec<u8>) -> Result<(), h2::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut client, stream) = tokio::io::duplex(32 << 20);
        client.write_all(&bytes).await.unwrap();
        let mut connection = server::handshake(AnyAuthority::new(stream)).await?;
        let ends = async {
            loop {
                match connection.accept().await {
                    Some(Ok::<(_, server::SendResponse<Bytes>), _>(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ends)
            .await
            .unwrap()?;
        poll_fn(|cx| connection.poll_closed(cx)).await
    })
}

#[test]
fn references_are_not_written_out_without_end() {
    let large = Written::Indexed("x-large".to_owned(), vec![b'a'; 3000]);
    let again = Written::Referred("x-large".to_owned(), vec![b'a'; 3000]);
    let mut writer = Writer::default();
    let mut frames = Frames {
        passthrough: 0,
        ..Frames::default()
    };
    let first = frames_of(1, &writer.write(&request(b"/", &[large])), 1 << 13);
    assert!(matches!(frames.step(&first), Step::Replace(..)));
    let bomb = request(b"/", &vec![again; 500_000]);
    let bomb = frames_of(3, &writer.write(&bomb), 1 << 13);
    let Step::Replace(_, written) = frames.step(&bomb) else {
        panic!("the block is incomplete");
    };
    assert!(written.len() < 3 * MAX_BLOCK, "{}", written.len());
}

#[test]
fn references_to_an_authority_are_not_read_without_end() {
    let [other, authority] = ["x-authority", ":authority"].map(|name| {
        // As large as the table allows.
        let kept = Written::Indexed(name.to_owned(), vec![b'a'; 4000]);
        let mut frames = Frames {
            passthrough: 0,
            ..Frames::default()
        };
        let first = frames_of(1, &Writer::default().write(&[kept]), 1 << 13);
        assert_eq!(frames.step(&first), Step::Pass(first.len()));
        // References to the newest entry.
        let bomb = frames_of(3, &vec![0xbe; 1_000_000], 1 << 13);
        let begin = std::time::Instant::now();
        assert_eq!(frames.step(&bomb), Step::Pass(bomb.len()));
        begin.elapsed()
    });
    // Validating each of them takes thirty times as long.
    assert!(authority < 8 * other, "{authority:?}, {other:?}");
}

fn name() -> impl Strategy<Value = String> {
    // Few names, so that references find entries.
    "x-[a-c]{1,2}"
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-b ]{0,2}[c-d]".prop_map(String::into_bytes),
        vec(0x80_u8..=0xff, 1..20),
    ]
}

fn field() -> impl Strategy<Value = Written> {
    (name(), value(), 0..4).prop_map(|(name, value, kind)| match kind {
        0 => Written::Referred(name, value),
        1 => Written::Indexed(name, value),
        2 => Written::Plain(name, value),
        _ => Written::Never(name, value),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn other_headers_stay_as_they_are(
        requests in vec((0..ODD.len() + 3, vec(field(), 0..8)), 1..12),
        // h2 takes no more than about eighty frames for a block.
        length in 4_usize..200,
        piece in 1_usize..300,
    ) {
        let mut writer = Writer::default();
        let mut bytes = beginning();
        for (number, (authority, others)) in requests.iter().enumerate() {
            let authority = ODD.get(*authority).copied().unwrap_or(b"good");
            let block = writer.write(&request(authority, others));
            bytes.extend(frames_of(2 * u32::try_from(number).unwrap() + 1, &block, length));
        }
        let read = read(bytes, piece).unwrap();
        prop_assert_eq!(read.len(), requests.len());
        for (read, (authority, others)) in read.iter().zip(&requests) {
            let authority = if *authority < ODD.len() { "localhost" } else { "good" };
            prop_assert_eq!(read.uri().authority().unwrap().as_str(), authority);
            prop_assert_eq!(read.headers(), &headers(others));
        }
    }

    #[test]
    fn any_bytes_are_accepted(bytes in vec(any::<u8>(), 0..400), frames in vec((0_u8..10, any::<u8>(), vec(any::<u8>(), 0..50)), 0..10)) {
        let mut all = beginning();
        for (kind, flags, payload) in frames {
            all.extend([0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 1]);
            all.extend(payload);
        }
        all.extend(bytes);
        let (mut frames, mut rest) = (Frames::default(), &all[..]);
        while !rest.is_empty() {
            match frames.step(rest) {
                Step::Pass(count) | Step::Replace(count, _) => rest = &rest[count..],
                Step::Incomplete => break,
            }
        }
    }
}
