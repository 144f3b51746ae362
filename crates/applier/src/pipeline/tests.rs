// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::io::{Seek as _, Write as _};

use flate2::write::GzEncoder;
use resnap_core::testing::NoopMonitor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::memory::MemoryBudget;

fn read(blob: &[u8], compression: Compression, limit: u64) -> Result<(Vec<u8>, Applied), Error> {
    read_with(blob, compression, limit, CancellationToken::new().into())
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
        stream.read_to_end(&mut bytes).context("read")?;
        Ok(bytes)
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn all_members_and_frames_are_read() {
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
        assert_eq!(applied.diff_id, Some(Digest::sha256(&bytes)));
        assert_eq!(applied.size, bytes.len() as u64);
        // containerd refuses these, too.
        let trailed = [&blob[..], b"garbage"].concat();
        let torn = &blob[..blob.len() - 3];
        for blob in [&trailed, torn] {
            let error = super::tests::read(blob, Compression::Detected, u64::MAX).unwrap_err();
            assert_eq!(
                error.kind(),
                resnap_core::Kind::InvalidArgument,
                "{error:?}"
            );
        }
        // Without compression nothing is detected.
        let (read, _) = super::tests::read(&blob, Compression::None, u64::MAX).unwrap();
        assert!(read == blob);
    }
}

#[test]
fn uncompressed_blobs_are_read() {
    for blob in [&b""[..], b"\x1f", b"\x1f\x8b\x07\0", b"a tar archive"] {
        for compression in [Compression::None, Compression::Detected] {
            let (read, applied) = read(blob, compression, u64::MAX).unwrap();
            assert_eq!(read, blob);
            assert_eq!(applied.diff_id, Some(Digest::sha256(blob)));
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
fn cancelled_work_ends() {
    let token = CancellationToken::new();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; 64 * CHUNK]).unwrap();
    file.rewind().unwrap();
    let work = Work {
        index: 0,
        compression: Compression::None,
        limit: u64::MAX,
        guard: token.clone().into(),
        monitor: Arc::new(NoopMonitor),
    };
    let cancelled = run(Source::File(file), &work, |stream| {
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte).context("read")?;
            token.cancel();
        }
        #[allow(unreachable_code)]
        Ok(())
    });
    assert!(matches!(cancelled, Err(Error::Cancelled)));
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
            assert_eq!(applied.diff_id, Some(Digest::sha256(&bytes)));
        }
        for end in [1, zeros.len()] {
            for more in [&b"x"[..], &blob] {
                let error = read(&[&zeros[..end], more]).unwrap_err();
                assert_eq!(
                    error.kind(),
                    resnap_core::Kind::InvalidArgument,
                    "{error:?}"
                );
            }
        }
    }
}

/// Returns a frame whose window has `bits` bits.
fn wide(bytes: &[u8], bits: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(bits).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn windows_count_as_memory_of_the_layer() {
    let guard = |limit| {
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let memory =
            MemoryBudget::new(limit, Default::default()).layer(&Default::default(), is_turn);
        Guard::new(CancellationToken::new(), memory)
    };
    let read = |blob: &[u8], limit| {
        let read = read_with(blob, Compression::Detected, u64::MAX, guard(limit));
        read.map(|(bytes, _)| bytes)
            .map_err(Error::unwrap_stop_reason)
    };
    let bytes = b"a tar archive".repeat(1000);
    for bits in [20, 28, 31] {
        let blob = wide(&bytes, bits);
        let needed = (1 << bits) + (1 << 20);
        assert!(
            read(&blob, needed / 10 * 16 + 160).unwrap() == bytes,
            "{bits}"
        );
        let refused = read(&blob, needed / 10 * 8);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        // The layer already has output.
        let second = [&wide(&bytes, 10)[..], &blob].concat();
        let refused = read(&second, needed / 10 * 8);
        assert!(matches!(refused, Err(Error::Stopped(_))), "{refused:?}");
    }
    // A frame with a known size takes no more than that.
    let small = zstd::bulk::compress(&bytes, 19).unwrap();
    assert!(read(&small, 1 << 20).unwrap() == bytes);
}

#[test]
fn windows_are_read_from_headers() {
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
