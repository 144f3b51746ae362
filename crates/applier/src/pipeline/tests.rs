// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::io::{Seek as _, Write as _};

use flate2::write::GzEncoder;
use resnap_core::testing::Nobody;

use super::*;

fn read(blob: &[u8], compression: Compression, limit: u64) -> Result<(Vec<u8>, Applied), Error> {
    let (_stop, stopped) = watch::channel(false);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(blob).unwrap();
    file.rewind().unwrap();
    let work = Work {
        index: 0,
        compression,
        limit,
        guard: Stop(stopped).into(),
        monitor: Arc::new(Nobody),
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
        monitor: Arc::new(Nobody),
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
