// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signed artifacts.

use std::fs;
use std::path::Path;

use resnap_integration::image::digest;
use serde_json::Value;

use crate::bed::{Bed, image, json, ok, refused};

#[test]
fn signed_artifacts_are_accepted_by_those_who_trust_the_signer() {
    let bed = Bed::new();
    bed.layout(&image("signed"), "app");
    bed.keys("publisher");
    bed.keys("stranger");
    let sign = |arguments: &[&str]| {
        bed.resnap(
            &[
                &[
                    "artifacts",
                    "sign",
                    "--json",
                    "oci:app:docker.io/library/app:1",
                ],
                arguments,
            ]
            .concat(),
        )
    };
    let verify = |signer: &str| {
        let signer = format!("{signer}.pem");
        bed.resnap(&[
            "artifacts",
            "verify",
            "oci:app:docker.io/library/app:1",
            "--signer",
            &signer,
        ])
    };
    let build = [
        "artifacts",
        "build",
        "oci:app:docker.io/library/app:1",
        "--set",
    ];
    refused(
        sign(&["--key", "publisher.key", "--certificate", "publisher.pem"]),
        &["artifacts build"],
    );
    for set in ["containerd", "notary"] {
        ok(bed.resnap(&[&build[..], &[set]].concat()));
        let other = sign(&["--key", "stranger.key", "--certificate", "publisher.pem"]);
        refused(other, &["CN=publisher"]);
        let signed = json(sign(&[
            "--key",
            "publisher.key",
            "--certificate",
            "publisher.pem",
        ]));
        assert_eq!(signed[0]["root_hashes"].as_object().unwrap().len(), 3);
        let shown = ok(verify("publisher"));
        assert_eq!(shown.matches("CN=publisher").count(), 3, "{shown}");
        refused(verify("stranger"), &["has no signature", "publisher"]);
        // The same artifact, by a command that has the key.
        let command = "openssl dgst -sha256 -sign publisher.key";
        let by_command = json(sign(&[
            "--sign-command",
            command,
            "--certificate",
            "publisher.pem",
        ]));
        assert_eq!(by_command, signed);
        let command = "cat >root; openssl smime -sign -noattr -binary -in root -inkey publisher.key -signer publisher.pem -outform der";
        let wrapped = [
            "--sign-command",
            command,
            "--sign-output",
            "pkcs7",
            "--certificate",
        ];
        json(sign(&[&wrapped[..], &["publisher.pem"]].concat()));
        ok(verify("publisher"));
        refused(
            sign(&[&wrapped[..], &["stranger.pem"]].concat()),
            &["sign the root hash"],
        );
        refused(
            sign(&["--sign-command", "exit 7", "--certificate", "publisher.pem"]),
            &["exit 7", "exit status: 7"],
        );
        ok(sign(&[
            "--key",
            "publisher.key",
            "--certificate",
            "publisher.pem",
        ]));

        let copy = format!("copy-{set}");
        ok(bed.resnap(&[
            "convert",
            "oci:app:docker.io/library/app:1",
            &format!("oci:{copy}:1"),
        ]));
        let to = format!("oci:{copy}:1");
        let push = ["artifacts", "push", "oci:app:docker.io/library/app:1", &to];
        ok(bed.resnap(&push));
        ok(bed.resnap(&["artifacts", "verify", &to, "--signer", "publisher.pem"]));
        ok(sign(&[
            "--key",
            "stranger.key",
            "--certificate",
            "stranger.pem",
        ]));
        refused(bed.resnap(&push), &["--replace"]);
        ok(bed.resnap(&[&push[..], &["--replace"]].concat()));
        refused(
            bed.resnap(&["artifacts", "verify", &to, "--signer", "publisher.pem"]),
            &["CN=stranger"],
        );
        ok(bed.resnap(&["artifacts", "verify", &to, "--signer", "stranger.pem"]));
    }
}

/// Changes the parts of a layout's image: each is rewritten with its digest.
fn rewrite(layout: &Path, change: impl FnOnce(&mut Value)) {
    let write = |value: &Value| {
        let bytes = value.to_string();
        let digest = digest(bytes.as_bytes());
        fs::write(layout.join("blobs").join(digest.replace(':', "/")), &bytes).unwrap();
        (digest, bytes.len())
    };
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mut index = read(&layout.join("index.json"));
    let old = index["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .replace(':', "/");
    let mut manifest = read(&layout.join("blobs").join(old));
    change(&mut manifest);
    let (digest, size) = write(&manifest);
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

#[test]
fn root_hashes_that_an_image_claims_are_not_signed() {
    let bed = Bed::new();
    bed.layout(&image("claims"), "app");
    ok(bed.resnap(&["convert", "--verity", "oci:app", "oci:native:1"]));
    let index: Value =
        serde_json::from_slice(&fs::read(bed.path("native/index.json")).unwrap()).unwrap();
    let inner = index["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .replace(':', "/");
    let inner: Value =
        serde_json::from_slice(&fs::read(bed.path("native/blobs").join(inner)).unwrap()).unwrap();
    let mut top = index.clone();
    top["manifests"] = Value::Array(vec![inner["manifests"][1].clone()]);
    fs::write(bed.path("native/index.json"), top.to_string()).unwrap();
    let platform = format!(
        "linux(+erofs)/{}",
        resnap_integration::image::host_platform().1
    );
    let build = ["artifacts", "build", "oci:native", "--platform", &platform];
    ok(bed.resnap(&build));
    rewrite(&bed.path("native"), |manifest| {
        let claim = format!("sha256:{}", "ab".repeat(32));
        manifest["layers"][0]["annotations"]["org.erofs.dmverity.root_digest"] = claim.into();
    });
    refused(bed.resnap(&build), &["verify the hash tree of layer"]);
}
