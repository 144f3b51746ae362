// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The cache of plans.
//!
//! A plan is made once for all concurrent callers, in a task of its own. A failure that the image's
//! documents cause repeats itself, and is cached for a while; other failures are not.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use resnap_core::{Digest, Error, Kind, ManifestPreference, Platform};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::{Plan, UnpackError};

/// The limit on the number of cached plans. A plan of many layers takes half a megabyte.
const MAX_PLANS: usize = 128;

/// The approximate limit on the bytes of all cached plans: a hostile image may have megabytes of
/// layers and annotations.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// The approximate cost in bytes of a cached error beside its messages.
const ERROR_BYTES: usize = 1024;

/// The time limit for making a plan: some reads of small files by the backend, and the wait for
/// other images with large documents.
const TIME: Duration = Duration::from_secs(300);

/// The time for which a failure is cached. It also bounds the effect of a failure that was mistaken for one
/// of the image.
const FAILURE_TIME: Duration = Duration::from_secs(600);

/// The plans of an engine. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlanCache(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cached: Mutex<HashMap<PlanKey, Cached>>,
    /// The plans that are being made.
    pending: Mutex<HashMap<PlanKey, Pending>>,
}

/// The inputs of a plan: equal keys have equal plans.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    pub(crate) name: String,
    pub(crate) reference: Option<String>,
    pub(crate) target: Digest,
    pub(crate) platform: Option<Platform>,
    pub(crate) pick: ManifestPreference,
    /// The OS features of the snapshotter, if they influence the choice.
    pub(crate) features: BTreeSet<String>,
    /// The name in the request, if it influences the choice.
    pub(crate) asked_by: Option<String>,
}

/// A plan, or the reason why there is none.
type Planned = Result<Arc<Plan>, UnpackError>;

/// A plan that is being made.
type Pending = Shared<BoxFuture<'static, Planned>>;

#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) result: Planned,
    /// The approximate memory use.
    bytes: usize,
    /// When the entry expires.
    until: Option<Instant>,
}

impl PlanCache {
    /// Returns the plan cached under `key`, or joins the caller that is making it, or runs `make`
    /// in a task of the runtime. `make` also returns whether its plan may be cached. Without a key
    /// nothing is cached or shared. Dropping the future does not stop the task.
    pub(crate) async fn get_or_make(
        &self,
        image: &str,
        key: Option<PlanKey>,
        make: impl Future<Output = Result<(Plan, bool), UnpackError>> + Send + 'static,
    ) -> Planned {
        let name = image.to_owned();
        let make = async move { within_time(&name, make).await };
        let Some(key) = key else {
            return in_task(image, async { Ok(Arc::new(make.await?.0)) }).await;
        };
        let plan = {
            let mut pending = self.pending();
            // A plan is cached before its pending entry goes.
            if let Some(cached) = self.get(&key) {
                return cached;
            }
            match pending.get(&key) {
                Some(plan) => plan.clone(),
                None => {
                    let entry = PendingEntry(self.clone(), key.clone());
                    let plan = in_task(image, entry.make(make)).shared();
                    pending.entry(key).or_insert(plan).clone()
                }
            }
        };
        plan.await
    }

    fn get(&self, key: &PlanKey) -> Option<Planned> {
        let cached = self.cached();
        let found = cached.get(key)?;
        let is_expired = found.until.is_some_and(|until| until <= Instant::now());
        (!is_expired).then(|| found.result.clone())
    }

    fn insert(&self, key: PlanKey, result: Planned) {
        let (bytes, until) = match &result {
            Ok(plan) => (plan.bytes(), None),
            Err(error) => (error_bytes(error), Some(Instant::now() + FAILURE_TIME)),
        };
        if bytes > MAX_BYTES {
            return;
        }
        let mut cached = self.cached();
        let sum: usize = cached.values().map(|cached| cached.bytes).sum();
        if cached.len() >= MAX_PLANS || sum + bytes > MAX_BYTES {
            cached.clear();
        }
        let entry = Cached {
            result,
            bytes,
            until,
        };
        cached.insert(key, entry);
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<PlanKey, Pending>> {
        self.0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cached(&self) -> MutexGuard<'_, HashMap<PlanKey, Cached>> {
        self.0.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pending entry of a plan, removed on drop.
struct PendingEntry(PlanCache, PlanKey);

impl PendingEntry {
    async fn make(self, make: impl Future<Output = Result<(Plan, bool), UnpackError>>) -> Planned {
        let (result, is_cacheable) = match make.await {
            Ok((plan, is_cacheable)) => (Ok(Arc::new(plan)), is_cacheable),
            Err(error) => {
                let is_cacheable = is_of_documents(&error);
                (Err(error), is_cacheable)
            }
        };
        let Self(plans, key) = &self;
        if is_cacheable {
            plans.insert(key.clone(), result.clone());
        }
        result
    }
}

impl Drop for PendingEntry {
    fn drop(&mut self) {
        self.0.pending().remove(&self.1);
    }
}

/// Starts making a plan in a task of its own.
fn in_task(
    image: &str,
    make: impl Future<Output = Planned> + Send + 'static,
) -> BoxFuture<'static, Planned> {
    let (task, image) = (tokio::spawn(make.in_current_span()), image.to_owned());
    let plan = async move {
        task.await.unwrap_or_else(|error| {
            let reason = error.to_string();
            Err(UnpackError::Broken { image, reason })
        })
    };
    plan.boxed()
}

/// Fails if `make` takes longer than [`TIME`].
async fn within_time<T>(
    image: &str,
    make: impl Future<Output = Result<T, UnpackError>>,
) -> Result<T, UnpackError> {
    let made = timeout(TIME, make).await;
    made.unwrap_or_else(|_| {
        let limit = format!("{} s", TIME.as_secs());
        Err(UnpackError::Image {
            image: image.to_owned(),
            source: Error::new(Kind::DeadlineExceeded, "read its documents within", limit),
        })
    })
}

/// Returns whether planning fails because of the contents of the image's documents. A digest
/// mismatch does not count: the next pull may bring the right bytes.
fn is_of_documents(error: &UnpackError) -> bool {
    match error {
        UnpackError::NoManifest { .. } => true,
        UnpackError::Backend(_) | UnpackError::Image { .. } | UnpackError::Broken { .. } => false,
        error => matches!(
            error.kind(),
            Kind::InvalidArgument | Kind::Unimplemented | Kind::ResourceExhausted
        ),
    }
}

/// Returns the approximate memory use of an error: a fixed cost, and the length of its messages.
fn error_bytes(error: &UnpackError) -> usize {
    struct Count(usize);
    impl fmt::Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut count = Count(ERROR_BYTES);
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        // Counting cannot fail.
        let _ = write!(count, "{error}");
        next = error.source();
    }
    count.0
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{
        Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
    };
    use resnap_core::{Profiles, Scope};
    use resnap_handler_wrapper::MAX_LAYERS;

    use super::*;
    use crate::backend::Backend;
    use crate::planner::Planner;
    use crate::{Engine, EngineSettings, Request};

    fn engine(backend: &Simulated) -> Engine {
        Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap()
    }

    async fn kind(engine: &Engine, image: &str) -> Kind {
        let plan = engine.plan(&Request::new(image)).await;
        plan.unwrap_err().kind()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_documents_are_cached() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        let tall = SimulatedImage::new(vec![layer; MAX_LAYERS + 1]);
        backend.add_image("k8s.io", "tall", &tall);
        let engine = engine(&backend);
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        let reads = backend.calls(Operation::OpenContent);
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        assert_eq!(backend.calls(Operation::OpenContent), reads);
        // The same content under another name is another image.
        backend.add_image("k8s.io", "again", &tall);
        assert_eq!(kind(&engine, "again").await, Kind::InvalidArgument);
        assert!(backend.calls(Operation::OpenContent) > reads);
        let reads = backend.calls(Operation::OpenContent);
        tokio::time::sleep(FAILURE_TIME).await;
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        assert!(backend.calls(Operation::OpenContent) > reads);
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_are_not_cached() {
        let backend = Simulated::new();
        let image = SimulatedImage::new([SimulatedLayer::new("a")]);
        backend.add_image("k8s.io", "web", &image);
        backend.remove_blob("k8s.io", &image.config.digest);
        let engine = engine(&backend);
        assert_eq!(kind(&engine, "web").await, Kind::NotFound);
        backend.add_image("k8s.io", "web", &image);
        backend.set_faults([1, 2].map(|call| Fault {
            operation: Operation::OpenContent,
            call,
            effect: match call {
                1 => Effect::Fail(Kind::ResourceExhausted),
                _ => Effect::Delay(2 * TIME),
            },
        }));
        assert_eq!(kind(&engine, "web").await, Kind::ResourceExhausted);
        tokio::time::sleep(FAILURE_TIME).await;
        assert_eq!(kind(&engine, "web").await, Kind::DeadlineExceeded);
        assert!(engine.plan(&Request::new("web")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_a_plan() {
        let backend = Simulated::new();
        for name in ["a", "b", "c"] {
            let image = SimulatedImage::new([SimulatedLayer::new(name)]);
            backend.add_image("k8s.io", name, &image);
        }
        let engine = engine(&backend);
        engine.plan(&Request::new("a")).await.unwrap();
        let reads = backend.calls(Operation::OpenContent);
        backend.set_faults([1, 2].map(|call| Fault {
            operation: Operation::OpenContent,
            call,
            effect: Effect::Delay(TIME / 10),
        }));
        let start = Instant::now();
        let asks = |name: &'static str| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.plan(&Request::new(name)).await })
        };
        let all: Vec<_> = ["b", "c", "b", "c", "b", "c"]
            .map(asks)
            .into_iter()
            .collect();
        // A caller that goes costs the others nothing.
        all[0].abort();
        for asked in all.into_iter().skip(1) {
            asked.await.unwrap().unwrap();
        }
        assert_eq!(backend.calls(Operation::OpenContent), 2 * reads);
        assert!(start.elapsed() < TIME / 5, "one after the other");
    }

    #[tokio::test]
    async fn plans_of_tall_images_do_not_pile_up() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        let tall = SimulatedImage::new(vec![layer.clone(); MAX_LAYERS]);
        let mut wordy = layer.clone();
        let word = |number| (format!("org.example.{number}"), "x".repeat(4000));
        wordy.descriptor.annotations = (0..1500).map(word).collect();
        let wordy = SimulatedImage::new([wordy]);
        let usual = SimulatedImage::new([layer]);
        let planner = Planner::new(Arc::new(Backend {
            sources: Vec::new(),
            keep_fetched: crate::KeepFetched::default(),
            absent: Default::default(),
            feeds: Arc::new(tokio::sync::Semaphore::new(1)),
            ports: backend.ports(),
            scope: Scope::new("k8s.io"),
            profiles: Profiles::default(),
        }));
        for number in 0..12 {
            for (name, image) in [("tall", &tall), ("wordy", &wordy), ("usual", &usual)] {
                let name = format!("{name}-{number}");
                backend.add_image("k8s.io", &name, image);
                planner.plan(&Request::new(&name)).await.unwrap();
                let cached = planner.cache().cached();
                let texts = cached.values().map(|entry| format!("{:?}", entry.result));
                let bytes: usize = texts.map(|text| text.len()).sum();
                assert!(bytes <= MAX_BYTES, "{bytes} in {}", cached.len());
                assert!(cached.keys().any(|key| key.name == name), "{name}");
            }
        }
    }
}
