// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::io::{Seek as _, Write as _};

use flate2::write::GzEncoder;
use resnap_core::testing::NoopMonitor;

use super::*;
use crate::memory::Memory;

fn read(blob: &[u8], compression: Compression, limit: u64) -> Result<(Vec<u8>, Applied), Error> {
    let (_stop, stopped) = watch::channel(false);
    read_with(blob, compression, limit, Stop(stopped).into())
}

fn read_with(
    blob: &[u8],
    compression: Compression,
    limit: u64,
    guard: Guard,
) -> Result<(Vec<u8>, Applied), Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(blob).unwrap();
    file.rewind().unwrap();
    let work = Work {
        index: 0,
        compression,
        limit,
        guard,
        monitor: Arc::new(NoopMonitor),
    };
    run(Source::File(file), &work, |stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).when("read")?;
        Ok(bytes)
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn all_members_and_frames_come_through() {
    let bytes: Vec<u8> = (0..3 * CHUNK + 7).map(|at| (at / 100) as u8).collect();
    let (head, tail) = bytes.split_at(CHUNK);
    let frames = |bytes| zstd::encode_all(bytes, 1).unwrap();
    let skipped = [0x5a, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, b'x'];
    for blob in [
        [gzip(head), gzip(tail)].concat(),
        [frames(head), frames(tail)].concat(),
        [&skipped[..], &frames(&bytes)].concat(),
    ] {
        let (read, applied) = read(&blob, Compression::Detected, u64::MAX).unwrap();
        assert!(read == bytes, "{:x?}", blob.get(..4));
        assert_eq!(applied.diff_id, Digest::sha256(&bytes));
        assert_eq!(applied.size, bytes.len() as u64);
        // As containerd has it.
        let trailed = [&blob[..], b"garbage"].concat();
        let torn = &blob[..blob.len() - 3];
        assert!(super::tests::read(&trailed, Compression::Detected, u64::MAX).is_err());
        assert!(super::tests::read(torn, Compression::Detected, u64::MAX).is_err());
        // That it is not compressed is taken at its word.
        let (read, _) = super::tests::read(&blob, Compression::None, u64::MAX).unwrap();
        assert!(read == blob);
    }
}

#[test]
fn what_is_not_compressed_comes_through() {
    for blob in [&b""[..], b"\x1f", b"\x1f\x8b\x07\0", b"a tar archive"] {
        for compression in [Compression::None, Compression::Detected] {
            let (read, applied) = read(blob, compression, u64::MAX).unwrap();
            assert_eq!(read, blob);
            assert_eq!(applied.diff_id, Digest::sha256(blob));
        }
    }
}

#[test]
fn bombs_are_limited() {
    let bomb = gzip(&vec![0; 40 << 20]);
    let error = read(&bomb, Compression::Detected, 30 << 20).unwrap_err();
    assert!(matches!(error, Error::Io(..)), "{error:?}");
    assert!(read(&bomb, Compression::Detected, 40 << 20).is_ok());
}

#[test]
fn it_stops_when_nobody_wants_it() {
    let (stop, stopped) = watch::channel(false);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; 64 * CHUNK]).unwrap();
    file.rewind().unwrap();
    let work = Work {
        index: 0,
        compression: Compression::None,
        limit: u64::MAX,
        guard: Stop(stopped).into(),
        monitor: Arc::new(NoopMonitor),
    };
    let mut stop = Some(stop);
    let stopped = run(Source::File(file), &work, |stream| {
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte).when("read")?;
            // To drop it is to say so.
            stop.take();
        }
        #[allow(unreachable_code)]
        Ok(())
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
}

#[test]
fn zeros_behind_the_end_are_ignored() {
    let bytes = b"a tar archive".repeat(1000);
    let frame = zstd::encode_all(&bytes[..], 1).unwrap();
    for blob in [gzip(&bytes), frame] {
        let zeros = vec![0; CHUNK + 3];
        let read = |more: &[&[u8]]| {
            let blob = [&[&blob[..]], more].concat().concat();
            read(&blob, Compression::Detected, u64::MAX)
        };
        for end in [1, 10, zeros.len()] {
            let (read, applied) = read(&[&zeros[..end]]).unwrap();
            assert!(read == bytes);
            assert_eq!(applied.diff_id, Digest::sha256(&bytes));
        }
        for end in [1, zeros.len()] {
            assert!(read(&[&zeros[..end], b"x"]).is_err());
            assert!(read(&[&zeros[..end], &blob]).is_err());
        }
    }
}

/// A frame that says its window has so many bits.
fn wide(bytes: &[u8], bits: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(bits).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn windows_come_out_of_the_memory_of_layers() {
    let guard = |limit| {
        let (stop, stopped) = watch::channel(false);
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let memory = Memory::new(limit);
        let allowance = memory.allow(&Default::default(), is_turn);
        (stop, Guard::new(Stop(stopped), allowance))
    };
    let read = |blob: &[u8], limit| {
        let (_stop, guard) = guard(limit);
        let read = read_with(blob, Compression::Detected, u64::MAX, guard);
        read.map(|(bytes, _)| bytes).map_err(Error::settled)
    };
    let bytes = b"a tar archive".repeat(1000);
    for bits in [20, 28, 31] {
        let blob = wide(&bytes, bits);
        let needed = (1 << bits) + (1 << 20);
        assert!(
            read(&blob, needed / 10 * 16 + 160).unwrap() == bytes,
            "{bits}"
        );
        let unfit = read(&blob, needed / 10 * 8);
        assert!(matches!(unfit, Err(Error::Unfit(_))), "{unfit:?}");
        // Something has come of the layer before.
        let second = [&wide(&bytes, 10)[..], &blob].concat();
        let unfit = read(&second, needed / 10 * 8);
        assert!(matches!(unfit, Err(Error::Denied(_))), "{unfit:?}");
    }
    // One that says how much is in it takes no more.
    let small = zstd::bulk::compress(&bytes, 19).unwrap();
    assert!(read(&small, 1 << 20).unwrap() == bytes);
}

#[test]
fn windows_are_as_their_frames_say() {
    for (header, want) in [
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0][..], 1 << 10),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x53], (1 << 20) / 8 * 11),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xff], (1 << 41) / 8 * 15),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 7], 7),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0x63, 1, 2, 3, 4, 1, 1], 513),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0x80, 0xff, 1, 0, 0, 0], 1),
        (
            &[0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0],
            1 << 32,
        ),
        (&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff], 0),
        (&[0x28, 0xb5, 0x2f], 0),
    ] {
        assert_eq!(members::window(header), want, "{header:x?}");
    }
}
