// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use serde_json::{Value, json};

use super::*;
use crate::media_type;

const ROOT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

fn subject() -> Digest {
    digest("image manifest")
}

fn part(media_type: &str, blob: &str, size: usize, annotations: Value) -> Value {
    json!({
        "mediaType": media_type, "digest": digest(blob).as_str(), "size": size,
        "annotations": annotations, "urls": ["http://127.0.0.1/"], "data": "e30=",
    })
}

fn manifest(artifact_type: &str, layers: Vec<Value>) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": digest("{}").as_str(),
            "size": 2,
        },
        "layers": layers,
        "subject": {
            "mediaType": media_type::OCI_MANIFEST, "digest": subject().as_str(), "size": 99,
        },
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    })
}

fn containerd_parts(layer: &str) -> Vec<Value> {
    let of = digest(layer);
    let of = of.as_str();
    let key = "io.containerd.erofs.v1/dmverity.source-layer-digest";
    vec![
        part(
            "application/vnd.containerd.erofs.metadata.v1",
            "index",
            4096,
            json!({key: of}),
        ),
        part(
            "application/vnd.containerd.erofs.dmverity.merkle-tree.v1",
            "tree",
            8192,
            json!({key: of, "containerd.io/snapshot/x": "y"}),
        ),
        part(
            "application/vnd.containerd.erofs.dmverity.layer-signature.v1+pkcs7",
            "signature",
            9,
            json!({key: of, "io.containerd.erofs.v1/dmverity.root-hash": ROOT}),
        ),
    ]
}

fn containerd() -> Value {
    let layers = ["one", "two"].map(containerd_parts).concat();
    manifest("application/vnd.containerd.erofs.dmverity.v1", layers)
}

fn notary() -> Value {
    let of = digest("one");
    let of = of.as_str();
    let key = "io.cncf.notary.dmverity.source-layer-digest";
    let layers = vec![
        part(
            "application/vnd.cncf.containerd.erofs.layer.v1",
            "index",
            4096,
            json!({key: of}),
        ),
        part(
            "application/vnd.cncf.dmverity.merkle-tree.v1",
            "tree",
            8192,
            json!({key: of}),
        ),
        part(
            "application/vnd.cncf.notary.dmverity.layer-signature+pkcs7",
            "signature",
            9,
            json!({
                "io.cncf.notary.dmverity.layer-digest": of,
                "io.cncf.notary.dmverity.layer-roothash": ROOT,
                "io.cncf.notary.dmverity.layer-signature": STANDARD.encode("signature"),
            }),
        ),
    ];
    manifest("application/vnd.cncf.notary.dmverity.v1", layers)
}

fn parse(document: &Value) -> Result<Bundle, BundleFault> {
    Bundle::parse(document.to_string().as_bytes(), &subject())
}

#[test]
fn both_sets_are_read() {
    let [containerd, notary] = [containerd(), notary()].map(|document| parse(&document).unwrap());
    assert_eq!(
        (containerd.set, containerd.set.padding()),
        (ArtifactSet::Containerd, 4096)
    );
    assert_eq!(
        (notary.set, notary.set.padding()),
        (ArtifactSet::Notary, 512)
    );
    assert_eq!(containerd.layers.len(), 2);
    let [plain, inline] = [&containerd, &notary].map(|bundle| &bundle.layers[&digest("one")]);
    assert_eq!(plain.inline_signature, None);
    assert_eq!(inline.inline_signature.as_deref(), Some(&b"signature"[..]));
    for layer in [plain, inline] {
        assert_eq!(layer.root_hash, ROOT);
        let indexed = layer.indexed.as_ref().unwrap();
        for (descriptor, name, size) in [
            (&indexed.index, "index", 4096),
            (&indexed.tree, "tree", 8192),
            (&layer.signature, "signature", 9),
        ] {
            assert_eq!((&descriptor.digest, descriptor.size), (&digest(name), size));
            assert!(descriptor.annotations.is_empty());
        }
    }
}

#[test]
fn all_names_are_read() {
    for set in ArtifactSet::ALL {
        let names = [Payload::Index, Payload::Tree, Payload::Signature]
            .map(|payload| set.layer_digest(payload));
        let names = names
            .into_iter()
            .chain([set.root_hash()])
            .chain(set.inline_signature());
        for name in names {
            assert!(names::ANNOTATIONS.contains(&name), "{name}");
        }
    }
}

/// A change of a manifest, and the reason why it is refused then.
type Refused = (fn(&mut Value), &'static str);

fn annotate(document: &mut Value, number: usize, key: &str, value: &str) {
    document["layers"][number]["annotations"][key] = value.into();
}

#[test]
fn a_bundle_is_refused_for_one_fault() {
    let refused: &[Refused] = &[
        (
            |m| m["mediaType"] = media_type::OCI_INDEX.into(),
            "its media type is \"application/vnd.oci.image.index.v1+json\"",
        ),
        (
            |m| m["artifactType"] = "x/y".into(),
            "its artifact type \"x/y\" is none",
        ),
        (
            |m| m["artifactType"] = ArtifactSet::Notary.artifact_type().into(),
            "payload 1 has the media type \"application/vnd.containerd.erofs.metadata.v1\"",
        ),
        (
            |m| m["config"]["mediaType"] = media_type::OCI_CONFIG.into(),
            "its config is not the empty one",
        ),
        (
            |m| m["config"]["digest"] = subject().as_str().into(),
            "its config is not the empty one",
        ),
        (
            |m| m["config"]["size"] = 3.into(),
            "its config is not the empty one",
        ),
        (|m| m["config"] = Value::Null, "its manifest cannot be read"),
        (|m| m["subject"] = Value::Null, "it has no subject"),
        (
            |m| m["subject"]["digest"] = digest("other").as_str().into(),
            "it is for the manifest \"sha256:",
        ),
        (|m| m["layers"] = json!([]), "it has no layers"),
        (|m| m["layers"] = Value::Null, "it has no layers"),
        (|m| m["layers"] = json!({}), "its manifest cannot be read"),
        (
            |m| m["layers"][2]["mediaType"] = "a/b".into(),
            "payload 3 has the media type \"a/b\"",
        ),
        (
            |m| m["layers"][0]["digest"] = "sha256:../..".into(),
            "payload 1 has \"sha256:../..\" for a digest",
        ),
        (
            |m| m["layers"][1]["annotations"] = Value::Null,
            "payload 2 does not name its layer: the annotation io.containerd.erofs.v1/dmverity.source-layer-digest is absent",
        ),
        (
            |m| {
                annotate(
                    m,
                    0,
                    "io.containerd.erofs.v1/dmverity.source-layer-digest",
                    "sha256:AB",
                )
            },
            "payload 1 does not name its layer",
        ),
        (
            |m| {
                let again = m["layers"][0].clone();
                m["layers"][3] = again;
            },
            "it has more than one index of layer sha256:",
        ),
        (
            |m| {
                let again = m["layers"][1].clone();
                m["layers"][4] = again;
            },
            "it has more than one hash tree of layer sha256:",
        ),
        (
            |m| {
                let again = m["layers"][2].clone();
                m["layers"][5] = again;
            },
            "it has more than one signature of layer sha256:",
        ),
        (
            |m| drop(m["layers"].as_array_mut().unwrap().remove(0)),
            "it has no index of layer sha256:",
        ),
        (
            |m| drop(m["layers"].as_array_mut().unwrap().remove(4)),
            "it has no hash tree of layer sha256:",
        ),
        (
            |m| drop(m["layers"].as_array_mut().unwrap().remove(5)),
            "it has no signature of layer sha256:",
        ),
        (
            |m| m["layers"][0]["size"] = 0.into(),
            "the index of layer sha256:",
        ),
        (
            |m| m["layers"][1]["size"] = ((16_u64 << 30) + 1).into(),
            "the hash tree of layer sha256:",
        ),
        (
            |m| m["layers"][2]["size"] = 65537.into(),
            "the signature of layer sha256:",
        ),
        (
            |m| m["layers"][2]["size"] = json!(-1),
            "its manifest cannot be read",
        ),
        (
            |m| {
                annotate(
                    m,
                    2,
                    "io.containerd.erofs.v1/dmverity.root-hash",
                    &ROOT.to_uppercase(),
                )
            },
            "the root hash of layer sha256:",
        ),
        (
            |m| {
                annotate(
                    m,
                    2,
                    "io.containerd.erofs.v1/dmverity.root-hash",
                    &ROOT[1..],
                )
            },
            "the root hash of layer sha256:",
        ),
        (
            |m| {
                m["layers"][2]["annotations"]["io.containerd.erofs.v1/dmverity.root-hash"] =
                    1.into()
            },
            "its manifest cannot be read",
        ),
    ];
    for (number, (change, reason)) in refused.iter().enumerate() {
        let mut document = containerd();
        change(&mut document);
        let text = parse(&document).unwrap_err().to_string();
        assert!(text.starts_with(reason), "{number}: {text}");
        assert!(text.len() < 400, "{number}: {text}");
    }
}

#[test]
fn layers_may_have_a_signature_only() {
    let mut document = containerd();
    document["layers"].as_array_mut().unwrap().drain(0..2);
    let layers = parse(&document).unwrap().layers;
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[&digest("one")].indexed, None);
    assert_eq!(layers[&digest("one")].root_hash, ROOT);
    assert!(layers[&digest("two")].indexed.is_some());
}

#[test]
fn signatures_in_the_manifest_are_those_of_the_blobs() {
    let key = "io.cncf.notary.dmverity.layer-signature";
    for text in [
        STANDARD.encode("signatuRe"),
        STANDARD.encode("sign"),
        "c2lnbmF0dXJl=".to_owned(),
        String::new(),
    ] {
        let mut document = notary();
        annotate(&mut document, 2, key, &text);
        let fault = parse(&document).unwrap_err();
        assert_eq!(fault, BundleFault::InlineSignature(digest("one")), "{text}");
    }
}

#[test]
fn repeated_annotations_are_refused() {
    let text = containerd().to_string();
    let one = format!(r#""io.containerd.erofs.v1/dmverity.root-hash":"{ROOT}""#);
    let twice = text.replacen(&one, &format!("{one},{one}"), 1);
    assert_ne!(text, twice);
    let fault = Bundle::parse(twice.as_bytes(), &subject()).unwrap_err();
    let reason = "its manifest cannot be read: the annotation io.containerd.erofs.v1/dmverity.root-hash is repeated";
    assert!(fault.to_string().starts_with(reason), "{fault}");
}

#[test]
fn bundles_are_bounded() {
    let large = vec![b' '; Bundle::MAX_BYTES + 1];
    let fault = Bundle::parse(&large, &subject()).unwrap_err();
    assert!(matches!(fault, BundleFault::TooLarge { .. }), "{fault}");

    let mut document = containerd();
    document["layers"] = (0..MAX_LAYERS + 1)
        .map(|number| {
            let mut part = containerd_parts(&number.to_string()).swap_remove(0);
            part["urls"] = Value::Null;
            part
        })
        .collect();
    let fault = parse(&document).unwrap_err();
    assert!(
        matches!(fault, BundleFault::TooManyLayers { .. }),
        "{fault}"
    );

    let parts = (0..257).flat_map(|number| {
        let mut parts = containerd_parts(&number.to_string());
        parts[2]["size"] = (64 << 10).into();
        parts
    });
    document["layers"] = parts.collect();
    let fault = parse(&document).unwrap_err();
    assert!(matches!(fault, BundleFault::Signatures { .. }), "{fault}");
    document["layers"].as_array_mut().unwrap().truncate(3 * 256);
    assert_eq!(parse(&document).unwrap().layers.len(), 256);

    let parts = (0..5).flat_map(|number| {
        let mut parts = containerd_parts(&number.to_string());
        parts[0]["size"] = (1 << 30).into();
        parts
    });
    document["layers"] = parts.collect();
    let fault = parse(&document).unwrap_err();
    assert!(matches!(fault, BundleFault::Indexes { .. }), "{fault}");
    document["layers"].as_array_mut().unwrap().truncate(3 * 4);
    assert_eq!(parse(&document).unwrap().layers.len(), 4);
    document["layers"][0]["size"] = ((1 << 30) + 1).into();
    let fault = parse(&document).unwrap_err();
    assert!(matches!(fault, BundleFault::Size { .. }), "{fault}");

    let name = "x".repeat(100_000);
    let mut document = containerd();
    document["layers"][0]["mediaType"] = name.into();
    let text = parse(&document).unwrap_err().to_string();
    assert!(text.len() < 400, "{}", text.len());
}

#[test]
fn encoded_bundles_are_parsed() {
    let blob = |name: &str| Descriptor {
        media_type: String::new(),
        digest: digest(name),
        size: name.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    };
    for set in ArtifactSet::ALL {
        let layer = |name: &str| {
            let signature = Descriptor {
                media_type: set.media_type(Payload::Signature).to_owned(),
                ..blob(name)
            };
            let inline = set.inline_signature().map(|_| name.as_bytes().to_vec());
            LayerArtifact::new(ROOT.to_owned(), None, signature, inline)
        };
        let typed = |name: &str, payload| Descriptor {
            media_type: set.media_type(payload).to_owned(),
            ..blob(name)
        };
        let indexed =
            IndexedLayer::new(typed("index", Payload::Index), typed("tree", Payload::Tree));
        let mut tar = layer("signature of a tar");
        tar.indexed = Some(indexed);
        let layers = [(digest("tar"), tar), (digest("image"), layer("another"))];
        let bundle = Bundle::new(set, layers.into());
        let subject = Descriptor {
            digest: subject(),
            media_type: media_type::OCI_MANIFEST.to_owned(),
            ..blob("")
        };
        let encoded = bundle.encode(&subject);
        assert_eq!(Bundle::parse(&encoded, &subject.digest), Ok(bundle));
    }
}
