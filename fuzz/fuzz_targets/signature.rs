// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Verifies arbitrary bytes as a signature. None is accepted by another signer than those of the seeds.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use resnap_verity::{RootHash, Trust};

/// A file that the tests of the crate have, too.
macro_rules! made {
    ($name:literal) => {
        include_bytes!(concat!("../../crates/verity/testdata/", $name))
    };
}

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let mut trust = Trust::new();
    trust
        .add_authorities(made!("ca.pem"))
        .expect("an authority");
    trust.add_signers(made!("signer.pem")).expect("a signer");
    trust
});

static ROOT_HASH: LazyLock<RootHash> = LazyLock::new(|| {
    let text = str::from_utf8(made!("root-hash")).expect("UTF-8");
    text.parse().expect("a root hash")
});

/// The middle of 2025, when the certificates are valid.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_751_328_000)
}

fuzz_target!(|bytes: &[u8]| {
    match TRUST.verify(bytes, &ROOT_HASH, now()) {
        Ok(signer) => assert!(
            ["CN=signer,O=Example", "CN=below-middle,O=Example"].contains(&&*signer.subject)
        ),
        // Errors name what is hostile, and end up in logs.
        Err(error) => assert!(error.to_string().len() < 4000),
    }
});
