// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Copies of layers against the layers from their blobs. The tests need root.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use resnap_layer::testing::typeflag;

use crate::testing::{RECORD, compare_copies, layers};

mod edges;
mod images;
mod refusals;
mod table;

const CASES: u32 = 200;

#[test]
#[ignore = "needs root: make test runs it"]
fn copies_are_as_from_blobs() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let records = prop::collection::vec(any::<[u8; RECORD]>(), 0..40);
    let done = TestRunner::new(config).run(&records, |records| {
        let mut layers = layers(&records.concat());
        for item in layers.iter_mut().flatten() {
            // A copy has no such device in the lowest layer, and is refused with such an attribute.
            if item.kind == typeflag::CHARACTER {
                item.device = (1, 3);
            }
            if item
                .xattrs
                .iter()
                .any(|(name, _)| name.starts_with("user.overlay."))
            {
                item.xattrs = &[];
            }
        }
        compare_copies(&layers, &std::env::temp_dir());
        Ok(())
    });
    done.unwrap();
}
