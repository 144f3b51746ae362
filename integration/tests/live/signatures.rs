// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signatures of root hashes, made and verified by the real `openssl`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::debian::{output, provision};
use resnap_verity::{RootHash, SigningCertificate, SigningKey, Trust};
use tempfile::TempDir;

use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    One: verity_signatures_are_verified_as_by_openssl,
}

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crates/verity/testdata/make.sh"
);

/// The middle of 2025, when the certificates of the script are valid.
const NOW: u64 = 1_751_328_000;

/// A party that is trusted with a signature.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// An authority.
    Authority(&'static str),
    /// The signer.
    Signer(&'static str),
}

use By::{Authority, Signer};

/// The signature that is made here, with another certificate in it.
const MADE: &str = "made";

/// The signatures that are accepted, and so by openssl.
const ACCEPTED: &[(&str, By)] = &[
    ("good", Authority("ca")),
    ("key-id", Authority("ca")),
    ("chain", Authority("ca")),
    ("foreign", Authority("foreign-ca")),
    ("good", Signer("signer")),
    ("no-certificate", Signer("signer")),
    ("self", Signer("self")),
    (MADE, Signer("publisher")),
];

/// The signatures that are refused with a reason, and whether openssl accepts them.
const REFUSED: &[(&str, By, bool, &str)] = &[
    (
        "other-root-hash",
        Authority("ca"),
        false,
        "is not of the root hash",
    ),
    (
        "foreign",
        Authority("ca"),
        false,
        "no configured authority issued",
    ),
    (
        "self",
        Authority("ca"),
        false,
        "is not in the signature and not configured",
    ),
    (
        "no-certificate",
        Authority("ca"),
        false,
        "is not in the signature and not configured",
    ),
    (
        "no-certificate",
        Signer("self"),
        false,
        "is not in the signature and not configured",
    ),
    ("expired", Authority("ca"), false, "expired"),
    ("expired", Signer("expired"), false, "expired"),
    ("below-old", Authority("old-ca"), false, "expired"),
    ("future", Authority("ca"), false, "not valid before"),
    (
        "no-ca",
        Authority("ca"),
        false,
        "may not issue certificates",
    ),
    (
        "unfit",
        Authority("ca"),
        false,
        "may not issue certificates",
    ),
    ("mail", Authority("ca"), true, "not for code signing"),
    ("no-purpose", Authority("ca"), true, "not for code signing"),
    ("authority", Authority("ca"), true, "is an authority"),
    ("sha384", Authority("ca"), true, "SHA-384"),
    ("pss", Authority("ca"), true, "RSASSA-PSS"),
    ("curve", Authority("ca"), true, "ECDSA"),
    ("short", Authority("ca"), true, "1024 bits"),
    ("attributes", Authority("ca"), true, "signed attributes"),
    ("two-signers", Authority("ca"), true, "2 signers"),
    ("attached", Authority("ca"), true, "not detached"),
];

fn openssl(directory: &Path, arguments: &[&str]) -> Result<String> {
    let program = provision()?.tools().join("openssl");
    output(Command::new(program).args(arguments).current_dir(directory))
}

/// Verifies as `openssl smime` does, or `openssl cms` for what only that can parse.
fn openssl_accepts(directory: &Path, name: &str, by: By) -> bool {
    let command = if matches!(name, "key-id" | "pss") {
        "cms"
    } else {
        "smime"
    };
    let signature = format!("{name}.p7s");
    let time = NOW.to_string();
    let (Authority(trusted) | Signer(trusted)) = by;
    let trusted = format!("{trusted}.pem");
    let common = [
        command,
        "-verify",
        "-binary",
        "-inform",
        "DER",
        "-in",
        &signature,
        "-attime",
        &time,
        "-purpose",
        "any",
        "-out",
        "/dev/null",
        "-CAfile",
        &trusted,
    ];
    let content = ["-content", "root-hash"];
    let pinned = ["-partial_chain", "-certfile", &trusted];
    let content = if name == "attached" {
        &[][..]
    } else {
        &content
    };
    let pinned = if matches!(by, Signer(_)) {
        &pinned[..]
    } else {
        &[]
    };
    openssl(directory, &[&common[..], content, pinned].concat()).is_ok()
}

fn verify(directory: &Path, name: &str, by: By) -> Result<()> {
    let read = |name: String| std::fs::read(directory.join(&name)).context(name);
    let mut trust = Trust::new();
    match by {
        Authority(trusted) => trust.add_authorities(&read(format!("{trusted}.pem"))?)?,
        Signer(trusted) => trust.add_signers(&read(format!("{trusted}.pem"))?)?,
    }
    let root: RootHash = String::from_utf8(read("root-hash".to_owned())?)?.parse()?;
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    trust.verify(&read(format!("{name}.p7s"))?, &root, now)?;
    Ok(())
}

/// Signs as openssl does, to the byte, and then with one more certificate.
fn make(directory: &Path) -> Result<()> {
    let read = |name: &str| std::fs::read(directory.join(name)).context(name.to_owned());
    let root: RootHash = String::from_utf8(read("root-hash")?)?.parse()?;
    let raw = SigningKey::from_pem(&read("publisher.key")?)?.sign(&root)?;
    let mut certificates = read("publisher.pem")?;
    let signature = SigningCertificate::from_pem(&certificates)?.signature(&root, &raw)?;
    ensure!(
        signature == read("publisher.p7s")?,
        "other bytes than openssl"
    );
    certificates.extend(read("middle.pem")?);
    let signature = SigningCertificate::from_pem(&certificates)?.signature(&root, &raw)?;
    std::fs::write(directory.join(format!("{MADE}.p7s")), signature)?;
    Ok(())
}

fn verity_signatures_are_verified_as_by_openssl(_: &Node) -> Result<()> {
    let directory = TempDir::new()?;
    let program = provision()?.tools().join("openssl");
    output(Command::new(SCRIPT).arg(program).arg(directory.path()))?;
    let directory = directory.path();
    make(directory)?;
    for (name, by) in ACCEPTED {
        verify(directory, name, *by).context(*name)?;
        ensure!(
            openssl_accepts(directory, name, *by),
            "{name}: openssl refuses it"
        );
    }
    for (name, by, accepted, reason) in REFUSED {
        let error = verify(directory, name, *by).err().context(*name)?;
        ensure!(error.to_string().contains(reason), "{name}: {error:#}");
        let found = openssl_accepts(directory, name, *by);
        ensure!(found == *accepted, "{name}: openssl accepts it: {found}");
    }
    Ok(())
}
