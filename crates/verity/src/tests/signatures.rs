// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures that OpenSSL made, and what becomes of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::common::made;
use crate::{CertificatesError, RootHash, SignatureError, Signer, Trust};

/// The middle of 2025.
const NOW: Duration = Duration::from_secs(1_751_328_000);

fn at(time: Duration) -> SystemTime {
    UNIX_EPOCH + time
}

fn root_hash() -> RootHash {
    "0123456789abcdef".repeat(4).parse().expect("a root hash")
}

fn authority() -> Trust {
    let mut trust = Trust::new();
    trust
        .add_authorities(made!("ca.pem"))
        .expect("an authority");
    trust
}

fn pinned(pem: &[u8]) -> Trust {
    let mut trust = Trust::new();
    trust.add_signers(pem).expect("a signer");
    trust
}

fn verify(trust: &Trust, der: &[u8]) -> Result<Signer, SignatureError> {
    trust.verify(der, &root_hash(), at(NOW))
}

#[test]
fn signers_of_an_authority_are_accepted() {
    for der in [&made!("good.p7s")[..], made!("key-id.p7s")] {
        let signer = verify(&authority(), der).expect("accepted");
        assert_eq!(signer.subject, "CN=signer,O=Example");
        assert_eq!(signer.fingerprint.len(), 64);
    }
    let signer = verify(&authority(), made!("chain.p7s")).expect("accepted");
    assert_eq!(signer.subject, "CN=below-middle,O=Example");
}

#[test]
fn pinned_signers_are_accepted() {
    let signer = pinned(made!("signer.pem"));
    for der in [
        &made!("good.p7s")[..],
        made!("no-certificate.p7s"),
        made!("key-id.p7s"),
    ] {
        verify(&signer, der).expect("accepted");
    }
    verify(&pinned(made!("self.pem")), made!("self.p7s")).expect("accepted");
    // One among others.
    let mut trust = authority();
    trust
        .add_authorities(made!("foreign-ca.pem"))
        .expect("an authority");
    trust.add_signers(made!("self.pem")).expect("a signer");
    trust.add_signers(made!("signer.pem")).expect("a signer");
    for der in [
        &made!("no-certificate.p7s")[..],
        made!("self.p7s"),
        made!("foreign.p7s"),
    ] {
        verify(&trust, der).expect("accepted");
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let trust = authority();
    for (der, reason) in [
        (&b""[..], "there is no signature"),
        (b"x", "not PKCS#7 signed data in DER"),
        (&[0; 65537], "has 65537 bytes, more than 65536"),
        (
            made!("other-root-hash.p7s"),
            "by \"CN=signer,O=Example\" is not of the root hash 0123456789abcdef",
        ),
        (
            made!("no-certificate.p7s"),
            "of \"CN=ca,O=Example\") is not in the signature and not configured",
        ),
        (
            made!("self.p7s"),
            "of \"CN=self,O=Example\") is not in the signature",
        ),
        (
            made!("foreign.p7s"),
            "\"CN=foreign,O=Example\" is not a configured signer, and no configured authority issued",
        ),
        (made!("below-old.p7s"), "no configured authority issued"),
        (made!("expired.p7s"), "expired at 2021-01-01T00:00:00Z"),
        (
            made!("future.p7s"),
            "is not valid before 2030-01-01T00:00:00Z",
        ),
        (
            made!("mail.p7s"),
            "\"CN=mail,O=Example\" is not for code signing",
        ),
        (made!("no-purpose.p7s"), "is not for code signing"),
        (made!("no-ca.p7s"), "may not issue certificates"),
        (made!("unfit.p7s"), "may not issue certificates"),
        (
            made!("authority.p7s"),
            "\"CN=ca,O=Example\" is an authority",
        ),
        (made!("sha384.p7s"), "uses SHA-384"),
        (made!("pss.p7s"), "uses RSASSA-PSS"),
        (made!("curve.p7s"), "uses ECDSA with SHA-256"),
        (made!("short.p7s"), "is an RSA key of 1024 bits"),
        (made!("attributes.p7s"), "has signed attributes"),
        (made!("two-signers.p7s"), "has 2 signers"),
        (made!("attached.p7s"), "is not detached"),
        (made!("ca.pem"), "not PKCS#7 signed data in DER"),
    ] {
        let error = verify(&trust, der).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn nothing_is_accepted_without_certificates() {
    let error = verify(&Trust::new(), made!("good.p7s")).expect_err("no trust");
    assert!(
        matches!(error, SignatureError::ForeignAuthority { .. }),
        "{error:?}"
    );
}

#[test]
fn certificates_are_trusted_within_their_time() {
    let (early, late) = (
        Duration::from_secs(1_600_000_000),
        Duration::from_secs(1_900_000_000),
    );
    for trust in [authority(), pinned(made!("signer.pem"))] {
        let verify = |time| trust.verify(made!("good.p7s"), &root_hash(), at(time));
        assert!(matches!(
            verify(early),
            Err(SignatureError::NotYetValid { .. })
        ));
        assert!(matches!(verify(late), Err(SignatureError::Expired { .. })));
        verify(NOW).expect("accepted");
    }
    // An authority that has expired, or no longer counts, has no signers.
    let mut trust = authority();
    trust
        .add_authorities(made!("old-ca.pem"))
        .expect("an authority");
    let error = verify(&trust, made!("below-old.p7s")).expect_err("an old authority");
    assert_eq!(
        error.to_string(),
        "the certificate of \"CN=below-old,O=Example\", or one above it, expired at 2021-01-01T00:00:00Z"
    );
    // One that expired is found while it is among the pinned ones, too.
    let error = verify(&pinned(made!("expired.pem")), made!("expired.p7s")).expect_err("expired");
    assert!(matches!(error, SignatureError::Expired { .. }), "{error:?}");
}

#[test]
fn files_that_have_nothing_to_trust_are_refused() {
    let mut trust = Trust::new();
    for (result, reason) in [
        (trust.clone().add_authorities(b""), "no certificates"),
        (
            trust.clone().add_signers(b"-----BEGIN CERTIFICATE-----\nx"),
            "not PEM",
        ),
        (
            trust
                .clone()
                .add_signers(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "certificate 1 is malformed",
        ),
        (
            trust.clone().add_authorities(made!("signer.pem")),
            "of \"CN=signer,O=Example\", is not an authority's",
        ),
        (
            trust.clone().add_signers(made!("mail.pem")),
            "certificate 1 cannot be a signer's",
        ),
        (
            trust.add_authorities(&made!("ca.pem").repeat(65)),
            "more than 64 certificates",
        ),
    ] {
        let error = result.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    let both = [&made!("ca.pem")[..], made!("signer.pem")].concat();
    let error = trust.add_authorities(&both).expect_err("a signer");
    assert!(
        matches!(error, CertificatesError::NotAnAuthority { number: 2, .. }),
        "{error:?}"
    );
    assert!(verify(&trust, made!("good.p7s")).is_err());
}

/// Each byte has a meaning, but for the algorithms' parameters and the version.
#[test]
fn a_changed_byte_is_never_another_signer() {
    let trust = authority();
    let good = verify(&trust, made!("good.p7s")).expect("accepted");
    for at in 0..made!("good.p7s").len() {
        let mut der = made!("good.p7s").to_vec();
        der[at] ^= 0x11;
        if let Ok(signer) = verify(&trust, &der) {
            assert_eq!(signer, good, "byte {at}");
        }
    }
}

/// Returns an element with the shortest length, as DER has it.
fn tlv(tag: u8, inner: &[u8]) -> Vec<u8> {
    let length = u32::try_from(inner.len()).expect("short").to_be_bytes();
    let length = match length {
        [0, 0, 0, 0..128] => length[3..].to_vec(),
        [0, 0, 0, _] => vec![0x81, length[3]],
        [0, 0, ..] => vec![0x82, length[2], length[3]],
        _ => vec![0x83, length[1], length[2], length[3]],
    };
    [&[tag][..], &length, inner].concat()
}

/// Sets of many elements in the wrong order take seconds if they are sorted as they are read.
#[test]
fn sets_of_many_elements_are_not_sorted() {
    let number = |number: u16| {
        let [high, low] = number.to_be_bytes();
        tlv(0x30, &[0x06, 2, 0x2a, high & 0x7f, low & 0x7f])
    };
    let many: Vec<u8> = (0..6000).rev().flat_map(number).collect();
    let signed = |digests: &[u8], certificates: &[u8], signers: &[u8]| {
        let fields = [
            &[2, 1, 1][..],
            &tlv(0x31, digests),
            &tlv(0x30, &[6, 1, 0x2a]),
            &tlv(0xa0, certificates),
            &tlv(0x31, signers),
        ];
        let oid = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
        let content = tlv(0xa0, &tlv(0x30, &fields.concat()));
        tlv(0x30, &[&oid[..], &content].concat())
    };
    for (der, count) in [
        (signed(&many, &[], &[]), 0),
        (signed(&[], &[], &many), 6000),
    ] {
        let error = verify(&authority(), &der).expect_err("no signer");
        assert!(
            matches!(error, SignatureError::Signers(found) if found == count),
            "{error:?}"
        );
    }
    let error = verify(&authority(), &signed(&[], &many, &[])).expect_err("no certificates");
    assert!(matches!(error, SignatureError::Malformed(_)), "{error:?}");
    let large = signed(&[], &tlv(0x30, &[0; 9000]), &[]);
    let error = verify(&authority(), &large).expect_err("a large certificate");
    assert!(
        matches!(error, SignatureError::CertificateTooLarge(9004)),
        "{error:?}"
    );
    let certificate = CertificateDer::from_pem_slice(made!("ca.pem")).expect("a certificate");
    let many = certificate.repeat(17);
    let error = verify(&authority(), &signed(&[], &many, &[])).expect_err("17 certificates");
    assert!(
        matches!(error, SignatureError::TooManyCertificates),
        "{error:?}"
    );
}

proptest! {
    #[test]
    fn changed_signatures_do_not_panic(at in 0..2000_usize, bytes in vec(any::<u8>(), 1..20)) {
        let mut der = made!("chain.p7s").to_vec();
        for (place, byte) in der.iter_mut().skip(at).zip(&bytes) {
            *place = *byte;
        }
        let _ = verify(&authority(), &der);
    }
}
