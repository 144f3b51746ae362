// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reads arbitrary bytes as the manifest of an artifact of an image, and as a list of referrers. What is read
//! stays within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use resnap_core::{ArtifactSet, Bundle, Digest, Payload, ReferrerList};

fuzz_target!(|bytes: &[u8]| {
    let subject = Digest::sha256(b"");
    let types = ArtifactSet::artifact_types();
    let mut list = ReferrerList::new(&subject, &types);
    if list.add_index(bytes).is_ok() {
        for referrer in list.into_found() {
            assert!(types.contains(&&*referrer.artifact_type));
            assert_ne!(referrer.descriptor.digest, subject);
        }
    }
    let Ok(bundle) = Bundle::parse(bytes, &subject) else {
        return;
    };
    assert!(!bundle.layers.is_empty());
    for layer in bundle.layers.into_values() {
        assert!(layer.root_hash.len() == 64 && layer.root_hash == layer.root_hash.to_lowercase());
        let indexed = layer.indexed.iter();
        let indexed = indexed.flat_map(|indexed| {
            [
                (Payload::Index, &indexed.index),
                (Payload::Tree, &indexed.tree),
            ]
        });
        for (payload, descriptor) in indexed.chain([(Payload::Signature, &layer.signature)]) {
            assert!((1..=payload.limit()).contains(&descriptor.size));
            assert!(descriptor.annotations.is_empty());
        }
        if let Some(bytes) = layer.inline_signature {
            assert_eq!(
                layer.signature.digest.same_algorithm(&bytes),
                layer.signature.digest
            );
        }
    }
});
