// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Superblocks, sidecars and root hashes from strangers.

use std::os::unix::fs::FileExt as _;

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};

use super::common::{UUID, device, file, noise, work};
use crate::{
    BlockSize, Error, RootHash, RootHashError, Sidecar, SidecarError, Superblock, SuperblockError,
    verify,
};

fn superblock() -> Superblock {
    Superblock::new(BlockSize::B4096, 77, UUID)
}

/// Decodes a superblock with other bytes at one place.
fn changed(at: usize, bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    let mut superblock = superblock().encode();
    superblock[at..at + bytes.len()].copy_from_slice(bytes);
    Superblock::decode(&superblock)
}

#[test]
fn unknown_superblocks_are_refused_by_name() {
    assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    for (at, bytes, text) in [
        (0, &b"LUKS"[..], "does not start with \"verity\""),
        (8, &[2], "its version is 2"),
        (12, &[0], "its hash type is 0"),
        (32, b"sha512", "its algorithm is \"sha512\""),
        (38, b"\n", "its algorithm is \"sha256\\n\""),
        (
            64,
            &[0, 2],
            "data blocks of 512 and hash blocks of 4096 bytes",
        ),
        (
            68,
            &[0, 0],
            "data blocks of 4096 and hash blocks of 0 bytes",
        ),
        (80, &[1, 1], "its salt has 257 bytes"),
        (80, &[255, 255], "its salt has 65535 bytes"),
        (82, &[1], "bytes at 82 that should be zero"),
        (120, &[1], "bytes at 120 that should be zero"),
        (511, &[1], "bytes at 511 that should be zero"),
    ] {
        let error = changed(at, bytes).expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn salts_of_every_length_are_read() {
    for length in [0, 1, 32, 255, 256_u16] {
        let salt = vec![7; usize::from(length)];
        let mut bytes = superblock().encode();
        bytes[80..82].copy_from_slice(&length.to_le_bytes());
        bytes[88..88 + salt.len()].copy_from_slice(&salt);
        let read = Superblock::decode(&bytes).expect("a superblock");
        assert_eq!(read.salt(), salt);
        assert_eq!(read.encode(), bytes);
    }
}

#[test]
fn numbers_of_blocks_that_do_not_fit_are_refused() {
    let (file, appended) = device(&noise(5 * 4096), BlockSize::B4096, None);
    let offset = appended.hash_offset;
    for data_blocks in [0, 1, 4, 6, 1 << 20, 1 << 52, u64::MAX] {
        let superblock = Superblock::new(BlockSize::B4096, data_blocks, UUID);
        file.write_all_at(&superblock.encode(), offset)
            .expect("write");
        let error =
            verify(&file, offset, &appended.root_hash, .., work()).expect_err("other sizes");
        let Error::Superblock { source, .. } = &error else {
            panic!("{data_blocks}: {error:?}");
        };
        assert!(
            matches!(source, SuperblockError::DataBlocks { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn files_that_end_early_are_refused() {
    let (file, appended) = device(&noise(5 * 4096), BlockSize::B4096, None);
    let verify = |offset| verify(&file, offset, &appended.root_hash, .., work());
    for offset in [appended.size, u64::MAX - 100] {
        let error = verify(offset).expect_err("nothing there");
        assert!(matches!(error, Error::Read { .. }), "{error:?}");
    }
    file.set_len(appended.size - 1).expect("shorter");
    let error = verify(appended.hash_offset).expect_err("a short tree");
    assert!(matches!(error, Error::Short { .. }), "{error:?}");
}

#[test]
fn hash_offsets_between_blocks_are_refused() {
    let superblock = Superblock::new(BlockSize::B4096, 1, UUID).encode();
    let file = file(&[&[0; 4096 + 512], &superblock[..]].concat());
    let error = verify(&file, 4096 + 512, &RootHash([0; 32]), .., work()).expect_err("between");
    assert!(matches!(error, Error::HashOffset { .. }), "{error:?}");
}

#[test]
fn root_hashes_are_64_lower_case_digits() {
    let text = "0123456789abcdef".repeat(4);
    let root: RootHash = text.parse().expect("a root hash");
    assert_eq!(root.to_string(), text);
    assert_eq!("".parse::<RootHash>(), Err(RootHashError::Empty));
    for malformed in [
        &text[1..],
        &format!("{text}0"),
        &text.to_uppercase(),
        &text.replace('0', "g"),
        &text.replace("01", "é"),
        &"é".repeat(1000),
    ] {
        let error = malformed.parse::<RootHash>().expect_err("malformed");
        assert!(error.to_string().len() < 300, "{error}");
    }
}

const HASH: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

#[test]
fn sidecars_are_as_containerd_writes_them() {
    let text = format!("{{\n  \"roothash\": \"{HASH}\",\n  \"hashoffset\": 4096\n}}");
    let sidecar = Sidecar::parse(text.as_bytes()).expect("a sidecar");
    assert_eq!(
        sidecar,
        Sidecar::new(HASH.parse().expect("a root hash"), 4096)
    );
    assert_eq!(sidecar.encode().expect("bytes"), text.as_bytes());
}

#[test]
fn other_keys_of_sidecars_are_kept() {
    let text = format!(
        r#"{{"salt": "00", "hashdevice": {{"a": [1, null]}}, "hashoffset": 8192, "roothash": "{HASH}"}}"#
    );
    let mut sidecar = Sidecar::parse(text.as_bytes()).expect("a sidecar");
    sidecar.hash_offset = 512;
    let bytes = sidecar.encode().expect("bytes");
    let text = String::from_utf8_lossy(&bytes);
    assert!(
        text.starts_with("{\n  \"roothash\"") && text.contains("\"hashoffset\": 512,\n"),
        "{text}"
    );
    assert!(text.contains("\"hashdevice\": {\n    \"a\": ["), "{text}");
    assert_eq!(Sidecar::parse(&bytes).expect("a sidecar"), sidecar);
}

#[test]
fn malformed_sidecars_are_refused_by_name() {
    let parse = |text: &str| Sidecar::parse(text.as_bytes()).expect_err(text);
    for text in [
        "{\"hashoffset\": 1}",
        "{\"roothash\": \"\", \"hashoffset\": 1}",
    ] {
        assert_eq!(parse(text).to_string(), "the root hash is empty");
    }
    let upper = format!(
        r#"{{"roothash": "{}", "hashoffset": 1}}"#,
        HASH.to_uppercase()
    );
    assert!(matches!(
        parse(&upper),
        SidecarError::RootHash(RootHashError::Malformed(_))
    ));
    for text in [
        "",
        "[]",
        "{",
        &format!(r#"{{"roothash": "{HASH}"}}"#),
        &format!(r#"{{"roothash": "{HASH}", "hashoffset": -1}}"#),
        &format!(r#"{{"roothash": "{HASH}", "hashoffset": 1}} {{}}"#),
        &format!(r#"{{"roothash": "{HASH}", "roothash": "{HASH}", "hashoffset": 1}}"#),
        &"[".repeat(10_000),
    ] {
        assert!(matches!(parse(text), SidecarError::Json(_)), "{text}");
    }
    // Readers in Go take these for the root hash.
    for key in ["RootHash", "rootha\u{17f}h", "HASHOFFSET"] {
        let text = format!(r#"{{"roothash": "{HASH}", "hashoffset": 1, "{key}": "x"}}"#);
        assert!(matches!(parse(&text), SidecarError::Ambiguous(found) if found == key));
    }
    let long = " ".repeat(70_000);
    assert!(matches!(parse(&long), SidecarError::TooLarge(70_000)));
}

proptest! {
    #[test]
    fn superblocks_that_are_decoded_are_encoded_again(at in 0..512_usize, bytes in vec(any::<u8>(), 0..40)) {
        let mut superblock = superblock().encode();
        for (place, byte) in superblock.iter_mut().skip(at).zip(&bytes) {
            *place = *byte;
        }
        if let Ok(decoded) = Superblock::decode(&superblock) {
            prop_assert_eq!(decoded.encode(), superblock);
        }
    }
}
