// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures that are made, compared with those of OpenSSL.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256};
use ring::signature::{RsaEncoding, RsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::common::made;
use crate::signed_data::SignedData;
use crate::{CertificatesError, RootHash, SigningCertificate, SigningError, SigningKey, Trust};

/// The middle of 2025.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_751_328_000)
}

fn root_hash() -> RootHash {
    "0123456789abcdef".repeat(4).parse().expect("a root hash")
}

fn publisher() -> SigningCertificate {
    SigningCertificate::from_pem(made!("publisher.pem")).expect("a certificate")
}

/// Signs with the publisher's key in another way than ours.
fn sign_as(padding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(made!("publisher.key")).expect("a key");
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).expect("a key");
    let mut signature = vec![0; 256];
    key.sign(padding, &SystemRandom::new(), message, &mut signature)
        .expect("signed");
    signature
}

#[test]
fn signatures_are_those_of_openssl() {
    for pem in [&made!("publisher.key")[..], made!("publisher-pkcs1.key")] {
        let key = SigningKey::from_pem(pem).expect("a key");
        let raw = key.sign(&root_hash()).expect("signed");
        let der = publisher().signature(&root_hash(), &raw).expect("made");
        assert!(der == made!("publisher.p7s"), "{der:02x?}");
    }
    // The raw signature of a key that is not here.
    let of_openssl = SignedData::parse(made!("good.p7s")).expect("a signature");
    let signer = SigningCertificate::from_pem(made!("signer.pem")).expect("a certificate");
    let der = signer.signature(&root_hash(), of_openssl.signature);
    let der = der.expect("made");
    assert!(der == made!("good.p7s"), "{der:02x?}");
}

#[test]
fn certificates_above_the_signer_come_with_the_signature() {
    let of_openssl = SignedData::parse(made!("chain.p7s")).expect("a signature");
    let [middle, signer] = &of_openssl.certificates[..] else {
        panic!("{} certificates", of_openssl.certificates.len());
    };
    let chain = SigningCertificate {
        signer: signer.raw.to_vec().into(),
        above: vec![middle.raw.to_vec().into()],
    };
    let der = chain.signature(&root_hash(), of_openssl.signature);
    let der = der.expect("made");
    let mut trust = Trust::new();
    trust
        .add_authorities(made!("ca.pem"))
        .expect("an authority");
    let signer = trust.verify(&der, &root_hash(), now()).expect("accepted");
    assert_eq!(signer.subject, "CN=below-middle,O=Example");
    // Without them, nobody knows who issued the signer's.
    let alone = SigningCertificate {
        above: Vec::new(),
        ..chain
    };
    let der = alone.signature(&root_hash(), of_openssl.signature);
    let refused = trust.verify(&der.expect("made"), &root_hash(), now());
    refused.expect_err("no authority");
}

#[test]
fn signatures_are_accepted_until_a_byte_changes() {
    let key = SigningKey::from_pem(made!("publisher.key")).expect("a key");
    let other: RootHash = "f".repeat(64).parse().expect("a root hash");
    let mut trust = Trust::new();
    trust.add_signers(made!("publisher.pem")).expect("a signer");
    for hash in [root_hash(), other] {
        let raw = key.sign(&hash).expect("signed");
        let mut der = publisher().signature(&hash, &raw).expect("made");
        let signer = trust.verify(&der, &hash, now()).expect("accepted");
        assert_eq!(signer.subject, "CN=publisher,O=Example");
        *der.last_mut().expect("a byte") ^= 1;
        trust.verify(&der, &hash, now()).expect_err("changed");
    }
}

#[test]
fn what_was_signed_wrongly_is_said() {
    let digits = root_hash().to_string();
    let digits = digits.as_bytes();
    let der = made!("publisher.p7s");
    let key = SigningKey::from_pem(made!("publisher.key")).expect("a key");
    let good = key.sign(&root_hash()).expect("signed");
    for (raw, reason) in [
        (
            sign_as(&RSA_PSS_SHA256, digits),
            "signature with RSASSA-PSS instead",
        ),
        (sign_as(&RSA_PKCS1_SHA384, digits), "with SHA-384 instead"),
        (sign_as(&RSA_PKCS1_SHA512, digits), "with SHA-512 instead"),
        (
            sign_as(&RSA_PKCS1_SHA256, &[digits, b"\n"].concat()),
            "of the digits and a line feed instead",
        ),
        (
            sign_as(&RSA_PKCS1_SHA256, &root_hash().0),
            "of the 32 bytes instead",
        ),
        (
            sign_as(&RSA_PKCS1_SHA256, &Sha256::digest(digits)),
            "of the SHA-256, which is hashed again, instead",
        ),
        (
            sign_as(&RSA_PKCS1_SHA256, b"other"),
            "\"CN=publisher,O=Example\" did not make this signature of the root hash 0123",
        ),
        (vec![0; 256], "did not make this signature"),
        (
            Vec::new(),
            "has 0 bytes, and those by the key of \"CN=publisher,O=Example\" have 256",
        ),
        (der.to_vec(), "or it is encoded as text or PKCS#7"),
        (vec![0; 70_000], "has 70000 bytes"),
    ] {
        let error = publisher().signature(&root_hash(), &raw);
        let error = error.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    let other = SigningCertificate::from_pem(made!("signer.pem")).expect("a certificate");
    let error = other
        .signature(&root_hash(), &good)
        .expect_err("another key");
    assert!(matches!(error, SigningError::OtherKey { .. }), "{error:?}");
}

#[test]
fn keys_that_cannot_sign_are_refused_with_what_helps() {
    let short = made!("publisher.key");
    let short = [&short[..400], b"\n-----END PRIVATE KEY-----\n"].concat();
    let broken = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (pem, reason) in [
        (&b""[..], "no private key"),
        (made!("publisher.pem"), "no private key"),
        (made!("encrypted.key"), "is encrypted; \"openssl pkey -in"),
        (
            made!("encrypted-pkcs1.key"),
            "is encrypted; \"openssl pkey -in",
        ),
        (
            made!("curve.key"),
            "elliptic curves, and only RSA keys are supported; \"openssl genpkey",
        ),
        (made!("curve-sec1.key"), "elliptic curves, and only RSA"),
        (broken, "is not PKCS#8"),
        (&short, "private key"),
        (b"-----BEGIN PRIVATE KEY-----\nx", "not PEM"),
    ] {
        let error = SigningKey::from_pem(pem).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    // A certificate in the same file is no reason to refuse it.
    let both = [&made!("publisher.pem")[..], made!("publisher.key")].concat();
    SigningKey::from_pem(&both).expect("a key");
}

#[test]
fn keys_are_not_shown() {
    let key = SigningKey::from_pem(made!("publisher.key")).expect("a key");
    let shown = format!("{key:?}");
    let secret = PrivatePkcs8KeyDer::from_pem_slice(made!("publisher.key")).expect("a key");
    let secret = secret.secret_pkcs8_der();
    // The private exponent follows the modulus and the public one.
    let secret: String = secret[320..340]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(
        shown.contains("RsaKeyPair") && !shown.contains(&secret),
        "{shown}"
    );
    assert!(shown.len() < 1000, "{shown}");
}

#[test]
fn certificates_that_nobody_accepts_do_not_sign() {
    for (pem, reason) in [
        (&b""[..], "no certificates"),
        (made!("publisher.key"), "no certificates"),
        (made!("mail.pem"), "certificate 1 cannot be a signer's"),
        (
            &made!("publisher.pem").repeat(17),
            "more than 16 certificates",
        ),
    ] {
        let error = SigningCertificate::from_pem(pem).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let chain = [&made!("publisher.pem")[..], broken].concat();
    let error = SigningCertificate::from_pem(&chain).expect_err("malformed");
    assert!(
        matches!(error, CertificatesError::Malformed { number: 2, .. }),
        "{error:?}"
    );
}
