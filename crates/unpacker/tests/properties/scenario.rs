// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The random scenarios.

use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use resnap_core::Kind;
use resnap_core::testing::{Behaviour, Effect, Fault, Operation, SimulatedImage, SimulatedLayer};

/// The snapshotters: without labels, with labels on the top layer, and with labels on each layer.
pub(crate) const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "nydus", "stargz"];

/// Lifetimes of leases. Only faults of Apply delay a call for a third of these or longer.
const MINUTES: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

/// The number of times that the engine calls Prepare for a snapshotter whose answers are wrong.
const PREPARE_TRIES: usize = 3;

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) images: Vec<Vec<Layer>>,
    /// Indices into [`SNAPSHOTTERS`].
    pub(crate) behaviours: [Behaviour; 3],
    /// The number of engines, which coordinate with each other.
    pub(crate) engines: usize,
    /// The lifetime of their leases.
    pub(crate) lifetime: Duration,
    pub(crate) chains: Vec<Chain>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) callers: Vec<Caller>,
    /// An image whose record is removed at this time.
    pub(crate) deletion: Option<(usize, Duration)>,
    /// The pause between garbage collections; `None` for none.
    pub(crate) garbage: Option<Duration>,
    /// The seed for the order of simultaneous events.
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Whole(u8),
    /// Its blob is missing.
    Missing(u8),
    /// Its diff ID in the config is wrong.
    Mislabelled(u8),
}

/// Layers that another client unpacks.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) image: usize,
    pub(crate) snapshotter: usize,
    /// The time at which they are unpacked; `None` before the run.
    pub(crate) comes: Option<Duration>,
    /// The maximum number of layers, from the base. Layers on a missing or mislabelled one are not unpacked.
    pub(crate) layers: usize,
    pub(crate) labelled: bool,
    /// Whether a label of the image keeps them from garbage collection.
    pub(crate) rooted: bool,
    /// Whether a container uses them. Only for layers unpacked before the run.
    pub(crate) contained: bool,
}

/// A caller that unpacks an image.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) image: usize,
    pub(crate) snapshotter: usize,
    pub(crate) repair: bool,
    pub(crate) engine: usize,
    pub(crate) comes: Duration,
    pub(crate) then: Then,
}

/// The behaviour of a caller.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    /// Waits for the end of the job.
    Waits,
    /// Drops the job after this time.
    Leaves(Duration),
    /// Cancels the job after this time, and waits for its end.
    Cancels(Duration),
}

impl Layer {
    pub(crate) fn simulated(self) -> SimulatedLayer {
        match self {
            Self::Whole(number) => SimulatedLayer::new(&format!("layer {number}")),
            Self::Missing(number) => SimulatedLayer::new(&format!("missing {number}")),
            Self::Mislabelled(number) => SimulatedLayer::mislabelled(&format!("wrong {number}")),
        }
    }
}

impl Scenario {
    pub(crate) fn image(&self, index: usize) -> SimulatedImage {
        SimulatedImage::new(self.images[index].iter().map(|layer| layer.simulated()))
    }

    /// Returns the scenario without faults, other clients and cancellations.
    pub(crate) fn calm(mut self) -> Self {
        for layer in self.images.iter_mut().flatten() {
            let (Layer::Whole(number) | Layer::Missing(number) | Layer::Mislabelled(number)) =
                *layer;
            *layer = Layer::Whole(number);
        }
        for behaviour in &mut self.behaviours {
            if let Behaviour::Lying(times) = behaviour {
                *times = PREPARE_TRIES - 1;
            }
        }
        for caller in &mut self.callers {
            if let Then::Cancels(_) = caller.then {
                caller.then = Then::Waits;
            }
        }
        self.chains.clear();
        self.faults.clear();
        self.deletion = None;
        self
    }

    /// Returns the scenario with a single caller, which repairs the layers of other clients.
    pub(crate) fn repair_alone(mut self) -> Self {
        self.faults.clear();
        self.deletion = None;
        self.garbage = None;
        self.callers.truncate(1);
        for chain in &mut self.chains {
            chain.comes = None;
        }
        for caller in &mut self.callers {
            caller.repair = true;
            caller.then = Then::Waits;
            if let Some(chain) = self.chains.first() {
                (caller.image, caller.snapshotter) = (chain.image, chain.snapshotter);
            }
        }
        self
    }

    /// Returns whether an Apply never ends, so that callers have to cancel it.
    pub(crate) fn hangs(&self) -> bool {
        let hang =
            |fault: &Fault| (fault.operation, fault.effect) == (Operation::Apply, Effect::Hang);
        self.faults.iter().any(hang)
    }

    /// Returns whether the engine may run out of tries on a snapshotter, because its answers are wrong or
    /// snapshots are removed as garbage right after them.
    pub(crate) fn may_disagree(&self, snapshotter: usize) -> bool {
        match self.behaviours[snapshotter] {
            Behaviour::Lying(times) => times >= PREPARE_TRIES || self.garbage.is_some(),
            _ => self.garbage.is_some() && !self.faults.is_empty(),
        }
    }
}

pub(crate) fn image_name(index: usize) -> String {
    format!("docker.io/library/image-{index}:1")
}

pub(crate) fn scenarios() -> impl Strategy<Value = Scenario> {
    let images = images().prop_flat_map(|images| {
        let count = images.len();
        (
            Just(images),
            prop::collection::vec(chain(count), 0..3),
            prop::collection::vec(caller(count), 1..6),
            prop::option::weighted(0.2, (0..count, milliseconds(0..100))),
        )
    });
    let garbage = prop::option::of(milliseconds(1..40));
    let faults = prop::collection::vec(fault(), 0..4);
    let behaviours = [behaviour(), behaviour(), behaviour()];
    let engines = (1..=2_usize, select(vec![MINUTES, HOUR]));
    (images, behaviours, engines, faults, garbage, any::<u64>()).prop_map(
        |(images, behaviours, (engines, lifetime), faults, garbage, seed)| {
            let (images, chains, callers, deletion) = images;
            Scenario {
                images,
                behaviours,
                engines,
                lifetime,
                chains,
                faults,
                callers,
                deletion,
                garbage,
                seed,
            }
        },
    )
}

/// Images of up to six layers on parts of a common base.
fn images() -> impl Strategy<Value = Vec<Vec<Layer>>> {
    let base = prop::collection::vec(layer(), 0..=4);
    let tops = prop::collection::vec((0..=4_usize, prop::collection::vec(layer(), 0..=2)), 1..=3);
    (base, tops).prop_map(|(base, tops)| {
        tops.into_iter()
            .map(|(shared, top)| {
                let shared = &base[..shared.min(base.len())];
                [shared, &top].concat()
            })
            .collect()
    })
}

fn milliseconds(range: Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn layer() -> impl Strategy<Value = Layer> {
    prop_oneof![
        20 => (0..6_u8).prop_map(Layer::Whole),
        1 => (0..2_u8).prop_map(Layer::Missing),
        1 => (0..2_u8).prop_map(Layer::Mislabelled),
    ]
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        4 => Just(Behaviour::Ordinary),
        2 => Just(Behaviour::Staged),
        2 => Just(Behaviour::Remote),
        1 => (1..=PREPARE_TRIES).prop_map(Behaviour::Lying),
    ]
}

fn chain(images: usize) -> impl Strategy<Value = Chain> {
    let labelled = prop::bool::weighted(0.5);
    let kept = (any::<bool>(), any::<bool>());
    let comes = prop::option::of(milliseconds(0..100));
    (0..images, 0..3_usize, comes, 1..=6_usize, labelled, kept).prop_map(
        |(image, snapshotter, comes, layers, labelled, (rooted, contained))| Chain {
            image,
            snapshotter,
            comes,
            layers,
            labelled,
            rooted,
            contained,
        },
    )
}

fn caller(images: usize) -> impl Strategy<Value = Caller> {
    let then = prop_oneof![
        6 => Just(Then::Waits),
        2 => milliseconds(0..100).prop_map(Then::Leaves),
        1 => milliseconds(0..200).prop_map(Then::Cancels),
    ];
    let engine = (0..2_usize, prop::bool::weighted(0.2));
    (0..images, 0..3_usize, engine, milliseconds(0..100), then).prop_map(
        |(image, snapshotter, (engine, repair), comes, then)| Caller {
            image,
            snapshotter,
            repair,
            engine,
            comes,
            then,
        },
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    let operation = select(Operation::ALL.to_vec());
    let kind = || {
        select(vec![
            Kind::Unavailable,
            Kind::Unknown,
            Kind::NotFound,
            Kind::DeadlineExceeded,
            Kind::FailedPrecondition,
        ])
    };
    let delay = || milliseconds(0..20_000);
    let effect = prop_oneof![
        3 => kind().prop_map(Effect::Fail),
        3 => kind().prop_map(Effect::LoseAnswer),
        1 => (kind(), delay()).prop_map(|(kind, delay)| Effect::Late(kind, delay)),
        1 => delay().prop_map(Effect::Delay),
        1 => Just(Effect::Hang),
    ];
    let hours = (0..4000_u64).prop_map(Duration::from_secs);
    (operation, 1..12_usize, effect, hours).prop_map(|(operation, call, effect, hours)| Fault {
        operation,
        call,
        effect: match (operation, effect) {
            // Longer than the lifetime of leases, which have to be renewed.
            (Operation::Apply, Effect::Delay(_)) => Effect::Delay(hours),
            // NotFound for an object that exists would be a wrong answer instead of a fault.
            (operation, _) if creates(operation) => effect,
            (_, Effect::Fail(Kind::NotFound)) => Effect::Fail(Kind::Unavailable),
            (_, Effect::LoseAnswer(Kind::NotFound)) => Effect::LoseAnswer(Kind::Unavailable),
            (_, Effect::Late(Kind::NotFound, delay)) => Effect::Late(Kind::Unavailable, delay),
            _ => effect,
        },
    })
}

/// Returns whether an operation creates or changes an object, so that NotFound is about an object that it
/// depends on.
fn creates(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Prepare
            | Operation::Commit
            | Operation::Apply
            | Operation::AddResource
            | Operation::SetLabel
    )
}
