// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The simulated backend where no conformance suite looks: faults, and snapshotters that are not
//! ordinary.

use std::time::Duration;

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_core::{ChainId, Kind, Labels, LeaseId, Mount, Result, Scope, SnapshotKey, labels};

const SECOND: Duration = Duration::from_secs(1);

fn simulated(behaviour: Behaviour) -> (Simulated, SimulatedLayer) {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", behaviour);
    let layer = SimulatedLayer::new("base");
    let image = SimulatedImage::new([layer.clone()]);
    simulated.add_image("ns", "docker.io/library/web:1", &image);
    (simulated, layer)
}

#[tokio::test(start_paused = true)]
async fn faults_happen_at_their_call() {
    let (simulated, _) = simulated(Behaviour::Ordinary);
    let effects = [
        Effect::Fail(Kind::Internal),
        Effect::LoseAnswer(Kind::Unavailable),
        Effect::Late(Kind::Unknown, SECOND),
        Effect::Hang,
        Effect::Delay(SECOND),
    ];
    let faults = effects.into_iter().zip(2..).map(|(effect, call)| Fault {
        operation: Operation::CreateLease,
        call,
        effect,
    });
    simulated.set_faults(faults);
    let (ports, scope) = (simulated.ports(), Scope::new("ns"));
    let create = async |name: &str| {
        let (lease, none) = (LeaseId(name.into()), Labels::new());
        let created = ports.leases.create(&scope, &lease, &none);
        let created = tokio::time::timeout(2 * SECOND, created).await;
        let kind = created.map(|created| created.map_err(|error| error.kind()));
        let there = simulated.leases("ns").iter().any(|other| other.id == lease);
        (kind.ok(), there)
    };
    assert_eq!(create("1").await, (Some(Ok(())), true));
    assert_eq!(create("2").await, (Some(Err(Kind::Internal)), false));
    assert_eq!(create("3").await, (Some(Err(Kind::Unavailable)), true));
    assert_eq!(create("4").await, (Some(Err(Kind::Unknown)), false));
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(simulated.leases("ns").len(), 3, "the late one is there");
    assert_eq!(create("5").await, (None, false));
    assert_eq!(create("6").await, (Some(Ok(())), true));
    assert_eq!(simulated.fired().len(), 5);
    assert_eq!(simulated.calls(Operation::CreateLease), 6);
}

/// Prepares the layer with all labels.
async fn prepare(simulated: &Simulated, layer: &SimulatedLayer, key: &str) -> Result<Vec<Mount>> {
    let chain_id = ChainId::of(None, &layer.diff_id);
    let mut all: Labels = labels::NEEDED
        .into_iter()
        .map(|key| (key.to_owned(), layer.descriptor.digest.to_string()))
        .collect();
    all.insert(labels::SNAPSHOT_REF.to_owned(), chain_id.to_string());
    let snapshotter = simulated.ports().snapshotters.snapshotter("sn");
    let key = SnapshotKey::from(key.to_owned());
    snapshotter
        .prepare(&Scope::new("ns"), &key, None, &all)
        .await
}

#[tokio::test(start_paused = true)]
async fn a_remote_snapshotter_commits_by_itself() {
    let (simulated, layer) = simulated(Behaviour::Remote);
    let prepared = prepare(&simulated, &layer, "a").await;
    assert_eq!(prepared.unwrap_err().kind(), Kind::AlreadyExists);
    let [snapshot] = &simulated.snapshots("ns", "sn")[..] else {
        panic!("one snapshot");
    };
    let chain_id = snapshot.chain_id().unwrap();
    assert_eq!(snapshot.info.key, SnapshotKey::from(&chain_id));
    assert_eq!(chain_id, ChainId::of(None, &layer.diff_id));
}

#[tokio::test(start_paused = true)]
async fn a_staged_layer_is_read_only_and_there() {
    let (simulated, layer) = simulated(Behaviour::Staged);
    let mounts = prepare(&simulated, &layer, "a").await.unwrap();
    assert!(mounts.last().unwrap().is_read_only());
    let snapshots = simulated.snapshots("ns", "sn");
    assert_eq!(snapshots[0].content, [layer.diff_id]);
}

#[tokio::test(start_paused = true)]
async fn a_liar_lies_so_many_times() {
    let (simulated, layer) = simulated(Behaviour::Lying(2));
    for key in ["a", "b"] {
        let prepared = prepare(&simulated, &layer, key).await;
        assert_eq!(prepared.unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(simulated.snapshots("ns", "sn"), []);
    }
    assert!(prepare(&simulated, &layer, "c").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_fails_leaves_a_torn_snapshot() {
    let (simulated, layer) = simulated(Behaviour::Ordinary);
    let mounts = prepare(&simulated, &layer, "a").await.unwrap();
    simulated.set_faults([Fault {
        operation: Operation::Apply,
        call: 1,
        effect: Effect::Fail(Kind::Unknown),
    }]);
    let (ports, scope) = (simulated.ports(), Scope::new("ns"));
    let applied = ports
        .applier
        .apply(&scope, &layer.descriptor, &mounts, false);
    assert_eq!(applied.await.unwrap_err().kind(), Kind::Unknown);
    let snapshot = simulated.snapshots("ns", "sn").remove(0);
    assert_ne!(snapshot.chain_id(), Some(ChainId::of(None, &layer.diff_id)));
}
