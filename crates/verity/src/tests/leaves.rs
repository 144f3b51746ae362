// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Digests that are computed while the data is written.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::common::{SIZES, UUID, contents, described, device, file, noise, work};
use crate::{BlockSize, Error, Leaves, append};

/// A call of a writer.
#[derive(Debug, Clone)]
enum Call {
    Bytes(Vec<u8>),
    Hole(usize),
    /// Blocks of 512 bytes from this one on, as far as there are any.
    Again(usize, usize),
    /// Bytes anywhere.
    Odd(usize, usize),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        4 => vec(any::<u8>(), 0..9000).prop_map(Call::Bytes),
        2 => (0..20_000_usize).prop_map(Call::Hole),
        1 => (0..40_usize, 0..10_usize).prop_map(|(at, count)| Call::Again(at, count)),
        1 => (0..30_000_usize, 0..3000_usize).prop_map(|(at, count)| Call::Odd(at, count)),
    ];
    vec(call, 0..20)
}

/// Does the calls; the result is whole blocks.
fn written(calls: &[Call], block: BlockSize, limit: usize) -> (Vec<u8>, Leaves) {
    let mut leaves = Leaves::new(block, limit);
    let mut data = Vec::new();
    for call in calls {
        let again = match call {
            Call::Bytes(bytes) => {
                leaves.update(bytes);
                data.extend_from_slice(bytes);
                continue;
            }
            Call::Hole(count) => {
                leaves.hole(*count as u64);
                data.resize(data.len() + count, 0);
                continue;
            }
            Call::Again(at, count) => at * 512..(at + count) * 512,
            Call::Odd(at, count) => *at..at + count,
        };
        if let Some(place) = data.get_mut(again.clone()) {
            place.iter_mut().for_each(|byte| *byte = !*byte);
            leaves.rewrite(again.start as u64, place);
        }
    }
    let end = (data.len() + 1).next_multiple_of(block.len()) - data.len();
    leaves.hole(end as u64);
    data.resize(data.len() + end, 0);
    (data, leaves)
}

proptest! {
    #[test]
    fn devices_are_the_same_with_leaves(
        calls in calls(), limit in prop_oneof![0..20_usize, Just(1000)], large in any::<bool>()
    ) {
        let block = if large { BlockSize::B4096 } else { BlockSize::B512 };
        let (data, leaves) = written(&calls, block, limit);
        prop_assert!(leaves.digests().len() <= limit);
        let (root, expected) = described(&data, block.len());
        let (file, appended) = device(&data, block, Some(&leaves));
        prop_assert_eq!(appended.root_hash.0, root);
        prop_assert!(contents(&file) == expected);
    }
}

/// A file that was changed behind the back of the digests shows that they are used.
#[test]
fn known_blocks_are_not_read() {
    for block in SIZES {
        let blocks = (1 << 20) / block.len() + 3;
        let data = noise(blocks * block.len());
        let mut leaves = Leaves::new(block, blocks);
        data.chunks(999).for_each(|piece| leaves.update(piece));
        assert_eq!(leaves.digests().len(), blocks);
        let (root, _) = described(&data, block.len());
        let (_, appended) = device(&vec![0; data.len()], block, Some(&leaves));
        assert_eq!(appended.root_hash.0, root);
    }
}

#[test]
fn huge_holes_cost_what_the_limit_allows() {
    let mut leaves = Leaves::new(BlockSize::B512, 10_000);
    leaves.update(b"x");
    leaves.hole(u64::MAX - 1);
    assert_eq!(leaves.digests().len(), 10_000);
    leaves.update(&[1; 5000]);
    assert_eq!(leaves.digests().len(), 10_000);
    assert!(
        leaves
            .digests()
            .iter()
            .skip(1)
            .all(|digest| *digest == leaves.digests()[1])
    );
}

#[test]
fn digests_of_other_data_are_refused() {
    let mut leaves = Leaves::new(BlockSize::B512, 100);
    leaves.update(&[0; 4096]);
    for (size, block) in [(4096, BlockSize::B4096), (512, BlockSize::B512)] {
        let file = file(&vec![0; size as usize]);
        let error =
            append(&file, size, block, UUID, Some(&leaves), work()).expect_err("other data");
        assert!(
            matches!(
                error,
                Error::Leaves {
                    digests: 8,
                    block: 512
                }
            ),
            "{error:?}"
        );
    }
}
