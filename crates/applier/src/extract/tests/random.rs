// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Any layer as a directory against the same as an EROFS image.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use resnap_layer::testing::typeflag;

use crate::testing::{Item, RECORD, compare, layers};

const CASES: u32 = 200;

/// Returns a directory.
fn directory(path: &str, mode: u32) -> Item {
    Item {
        kind: typeflag::DIRECTORY,
        path: path.to_owned(),
        target: "",
        mode,
        owner: (0, 0),
        mtime: (0, 0),
        size: 0,
        device: (0, 0),
        xattrs: &[],
    }
}

/// Layers with directories that others do not state.
fn below() -> Vec<Vec<Item>> {
    let bottom = vec![
        directory("a/b/c", 0o701),
        Item {
            xattrs: &[("user.below", b"1")],
            ..directory("a/c", 0o702)
        },
        directory("b/a/a", 0o703),
        directory("a-/b", 0o1777),
    ];
    let opaque = Item {
        kind: typeflag::REGULAR,
        ..directory("b/.wh..wh..opq", 0)
    };
    let top = vec![directory("a/b", 0o700), directory("b", 0o711), opaque];
    vec![bottom, top]
}

#[test]
#[ignore = "needs root: make test runs it"]
fn directories_are_as_images() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    };
    let records = prop::collection::vec(any::<[u8; RECORD]>(), 0..25);
    let done = TestRunner::new(config).run(&(records, any::<bool>()), |(records, is_lowest)| {
        let mut all = match is_lowest {
            true => Vec::new(),
            false => below(),
        };
        all.extend(layers(&records.concat()));
        compare(&all, &std::env::temp_dir());
        Ok(())
    });
    done.unwrap();
}
