// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Which job gets a slot, and when.

use futures::FutureExt as _;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Returns a slot if one is free.
fn now(share: &Share) -> Option<Slot> {
    share.slot().now_or_never()
}

fn all_now(share: &Share) -> Vec<Slot> {
    std::iter::from_fn(|| now(share)).collect()
}

#[tokio::test(start_paused = true)]
async fn alone_a_job_gets_all_and_no_more() {
    let slots = Slots::new(3);
    let share = slots.share(1);
    let waiter = share.mark_urgent(None);
    assert_eq!(all_now(&share).len(), 3);
    drop(waiter);
    assert_eq!(all_now(&share).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn jobs_without_slots_get_one_beyond_the_limit() {
    let slots = Slots::new(2);
    let shares: Vec<Share> = (0..4).map(|job| slots.share(job)).collect();
    let waiters: Vec<Urgency> = shares.iter().map(|share| share.mark_urgent(None)).collect();
    let all = all_now(&shares[0]);
    assert_eq!(all.len(), 2);
    let more: Vec<Vec<Slot>> = shares[1..].iter().map(all_now).collect();
    let counts: Vec<usize> = more.iter().map(Vec::len).collect();
    assert_eq!(counts, [1, 1, 0], "twice as many is the most");
    drop((waiters, more, all));
    assert_eq!(all_now(&shares[3]).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn free_slots_go_round() {
    let slots = Slots::new(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    let shares: Vec<Arc<Share>> = (0..3).map(|job| Arc::new(slots.share(job))).collect();
    let blocker = slots.share(9);
    let blocked = (blocker.mark_urgent(None), now(&blocker));
    let mut tasks = Vec::new();
    // The first job asks for all it has before the others ask for anything.
    for share in &shares {
        for layer in 0..3 {
            let (share, order) = (Arc::clone(share), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let slot = share.slot().await;
                order.lock().unwrap().push((share.job, layer));
                tokio::time::sleep(SECOND).await;
                drop(slot);
            }));
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(order.lock().unwrap().len(), 0);
    drop(blocked);
    for task in tasks {
        task.await.unwrap();
    }
    let order = order.lock().unwrap().clone();
    let jobs: Vec<u64> = order.iter().map(|(job, _)| *job).collect();
    assert_eq!(jobs, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let first: Vec<i32> = order
        .iter()
        .filter(|(job, _)| *job == 0)
        .map(|(_, layer)| *layer)
        .collect();
    assert_eq!(first, [0, 1, 2], "a job's layers keep their order");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_urgent_for_a_while_after_its_last_waiter() {
    let slots = Slots::new(1);
    let [left, idle] = [1, 2].map(|job| slots.share(job));
    let waiter = left.mark_urgent(None);
    assert!(now(&idle).is_none(), "it stands back for one that works");
    drop(waiter);
    tokio::time::sleep(59 * SECOND).await;
    assert!(now(&idle).is_none());
    // Nobody tells it.
    let start = Instant::now();
    drop(idle.slot().await);
    assert_eq!(start.elapsed(), SECOND);
    // Without a waiter one has no right beyond the limit, and with one again it has.
    let all = now(&idle);
    assert!(all.is_some() && now(&left).is_none());
    let waiter = left.mark_urgent(None);
    assert!(now(&left).is_some());
    drop(waiter);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_job_takes_only_free_slots() {
    let slots = Slots::new(2);
    let [left, urgent] = [1, 2].map(|job| slots.share(job));
    drop(left.mark_urgent(None));
    tokio::time::sleep(61 * SECOND).await;
    let waiter = urgent.mark_urgent(None);
    let one = now(&urgent);
    let rest = all_now(&left);
    assert!(one.is_some() && rest.len() == 1, "{}", rest.len());
    let waits = urgent.slot();
    let mut waits = pin!(waits);
    assert!(waits.as_mut().now_or_never().is_none());
    let queued = left.slot();
    let mut queued = pin!(queued);
    assert!(queued.as_mut().now_or_never().is_none());
    drop(rest);
    assert!(
        queued.as_mut().now_or_never().is_none(),
        "the urgent one is first"
    );
    assert!(waits.now_or_never().is_some());
    drop((waiter, one));
}

#[tokio::test(start_paused = true)]
async fn the_holder_of_a_lock_inherits_urgency() {
    let slots = Slots::new(1);
    let [holder, waiting, other] = [1, 2, 3].map(|job| slots.share(job));
    let waiter = waiting.mark_urgent(None);
    let held = holder.claim_lock("chain-a");
    held.set_held();
    assert!(now(&holder).is_none());
    let elsewhere = waiting.claim_lock("chain-b");
    assert!(now(&holder).is_none());
    drop(elsewhere);
    let wanted = waiting.claim_lock("chain-a");
    assert!(now(&holder).is_some() && now(&other).is_none());
    drop(wanted);
    assert!(now(&holder).is_none());
    drop((held, waiter));
}

#[tokio::test(start_paused = true)]
async fn cancelled_requests_leave_the_queue() {
    let slots = Slots::new(1);
    let [first, second] = [1, 2].map(|job| slots.share(job));
    let waiters = [first.mark_urgent(None), second.mark_urgent(None)];
    let slot = now(&first);
    drop(first.slot());
    let waits = second.slot();
    let extra = waits.now_or_never();
    drop((slot, extra));
    first.end();
    assert_eq!(all_now(&second).len(), 1);
    drop(waiters);
}

#[tokio::test(start_paused = true)]
async fn the_images_of_one_tenant_do_not_block_others() {
    let slots = Slots::new(2);
    let shares: Vec<Share> = (0..8).map(|job| slots.share(job)).collect();
    // One tenant has more jobs than slots.
    let hostile: Vec<Urgency> = shares[..6]
        .iter()
        .map(|share| share.mark_urgent(Some("a/pod")))
        .collect();
    let held: Vec<Slot> = shares[..6].iter().filter_map(now).collect();
    assert_eq!(held.len(), 4);
    // Those of others neither wait for them nor count as theirs if they want the same image.
    let other = shares[6].mark_urgent(Some("b/pod"));
    let own = now(&shares[6]);
    assert!(own.is_some());
    assert!(now(&shares[6]).is_none());
    let joined = shares[5].mark_urgent(Some("c/pod"));
    let shared = now(&shares[5]);
    assert!(shared.is_some());
    drop((shared, joined, own, other, held, hostile));
}

#[tokio::test(start_paused = true)]
async fn free_slots_go_to_the_tenant_that_has_the_fewest() {
    let slots = Slots::new(4);
    let shares: Vec<Arc<Share>> = (0..4).map(|job| Arc::new(slots.share(job))).collect();
    let pods = ["a/1", "a/2", "a/3", "b/1"];
    let waiters = shares.iter().zip(pods);
    let waiters: Vec<Urgency> = waiters
        .map(|(share, pod)| share.mark_urgent(Some(pod)))
        .collect();
    let mut held: Vec<Slot> = shares.iter().filter_map(|share| now(share)).collect();
    assert_eq!(held.len(), 4);
    // The turn of the first job is longest ago.
    let mut asks = [0, 3].map(|job| {
        let share = Arc::clone(&shares[job]);
        Box::pin(async move { share.slot().await })
    });
    for ask in &mut asks {
        assert!(ask.now_or_never().is_none());
    }
    drop(held.remove(2));
    let [first, last] = &mut asks;
    assert!(first.now_or_never().is_none());
    assert!(last.now_or_never().is_some());
    drop((held, waiters));
}
