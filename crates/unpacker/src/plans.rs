// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Plans that are kept, and the making of those that are not.
//!
//! Each is made once for all who ask for it meanwhile, in a task of its own. What fails by what the
//! documents say fails again, and is kept as well; what fails otherwise may work the next time.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use resnap_core::{Error, Kind};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::{Plan, UnpackError};

/// Most plans that are kept; one of many layers takes half a megabyte.
const MAX_PLANS: usize = 128;

/// Most bytes that they take, about: a hostile image may have megabytes of layers and annotations.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// How long making one may take: some reads of small files by the backend, and the wait for others
/// whose documents are large.
const TIME: Duration = Duration::from_secs(300);

/// How long a failure is kept: the same for one that was taken for the image's by mistake.
const FAILURE_TIME: Duration = Duration::from_secs(600);

/// The plans of an engine. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: Mutex<HashMap<String, Kept>>,
    /// Those that are being made, by the same keys.
    making: Mutex<HashMap<String, Making>>,
}

/// A plan, or why there is none.
type Planned = Result<Arc<Plan>, UnpackError>;

/// A plan that is being made.
type Making = Shared<BoxFuture<'static, Planned>>;

#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) result: Planned,
    /// About how many it takes.
    bytes: usize,
    /// When it is forgotten.
    until: Option<Instant>,
}

impl Plans {
    /// Returns the plan that is kept by `key`, or that somebody else is making for it, or else what
    /// `make` makes for `image` in a task of the runtime. That also says whether it will make the
    /// same as long as the key is the same. Without a key nothing is kept or shared. Dropping the
    /// future does not stop the making.
    pub(crate) async fn get_or_make(
        &self,
        image: &str,
        key: Option<String>,
        make: impl Future<Output = Result<(Plan, bool), UnpackError>> + Send + 'static,
    ) -> Planned {
        let name = image.to_owned();
        let make = async move { within(&name, make).await };
        let Some(key) = key else {
            return in_task(image, async { Ok(Arc::new(make.await?.0)) }).await;
        };
        let making = {
            let mut making = self.making();
            // A plan is kept before it is no longer being made.
            if let Some(known) = self.get(&key) {
                return known;
            }
            match making.get(&key) {
                Some(making) => making.clone(),
                None => {
                    let entry = Entry(self.clone(), key.clone());
                    let begun = in_task(image, entry.make(make)).shared();
                    making.entry(key).or_insert(begun).clone()
                }
            }
        };
        making.await
    }

    fn get(&self, key: &str) -> Option<Result<Arc<Plan>, UnpackError>> {
        let kept = self.kept();
        let found = kept.get(key)?;
        let is_over = found.until.is_some_and(|until| until <= Instant::now());
        (!is_over).then(|| found.result.clone())
    }

    fn keep(&self, key: String, result: Result<Arc<Plan>, UnpackError>) {
        let (bytes, until) = match &result {
            Ok(plan) => (plan.bytes(), None),
            Err(error) => (text_bytes(error), Some(Instant::now() + FAILURE_TIME)),
        };
        if bytes > MAX_BYTES {
            return;
        }
        let mut kept = self.kept();
        let sum: usize = kept.values().map(|kept| kept.bytes).sum();
        if kept.len() >= MAX_PLANS || sum + bytes > MAX_BYTES {
            kept.clear();
        }
        kept.insert(
            key,
            Kept {
                result,
                bytes,
                until,
            },
        );
    }

    fn making(&self) -> MutexGuard<'_, HashMap<String, Making>> {
        self.0.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a plan that is being made, until this is dropped.
struct Entry(Plans, String);

impl Entry {
    async fn make(self, make: impl Future<Output = Result<(Plan, bool), UnpackError>>) -> Planned {
        let (result, lasts) = match make.await {
            Ok((plan, lasts)) => (Ok(Arc::new(plan)), lasts),
            Err(error) => {
                let lasts = is_the_images(&error);
                (Err(error), lasts)
            }
        };
        let Self(plans, key) = &self;
        if lasts {
            plans.keep(key.clone(), result.clone());
        }
        result
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.making().remove(&self.1);
    }
}

/// Makes a plan in a task of its own, from now on.
fn in_task(
    image: &str,
    make: impl Future<Output = Planned> + Send + 'static,
) -> BoxFuture<'static, Planned> {
    let (task, image) = (tokio::spawn(make.in_current_span()), image.to_owned());
    let made = async move {
        task.await.unwrap_or_else(|error| {
            let reason = error.to_string();
            Err(UnpackError::Broken { image, reason })
        })
    };
    made.boxed()
}

/// Gives up what takes longer than [`TIME`].
async fn within<T>(
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

/// Whether a plan fails by what the image's documents say. That bytes are not those of their digest
/// is none of it: the next pull may bring the right ones.
fn is_the_images(error: &UnpackError) -> bool {
    match error {
        UnpackError::NoManifest { .. } => true,
        UnpackError::Backend(_) | UnpackError::Image { .. } | UnpackError::Broken { .. } => false,
        error => matches!(
            error.kind(),
            Kind::InvalidArgument | Kind::Unimplemented | Kind::ResourceExhausted
        ),
    }
}

/// Returns about how much memory an error takes: as much as all of it as text.
fn text_bytes(value: &UnpackError) -> usize {
    struct Count(usize);
    impl fmt::Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail.
    let _ = write!(count, "{value:?}");
    count.0
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{
        Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
    };
    use resnap_handler_wrapper::MAX_LAYERS;

    use super::*;
    use crate::{Engine, EngineSettings, Request};

    fn engine(backend: &Simulated) -> Engine {
        Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap()
    }

    async fn kind(engine: &Engine, image: &str) -> Kind {
        let plan = engine.plan(&Request::new(image, "")).await;
        plan.unwrap_err().kind()
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_by_its_documents_is_not_read_again_for_a_while() {
        let backend = Simulated::new();
        let layer = SimulatedLayer::new("the same again");
        let tall = SimulatedImage::new(vec![layer; MAX_LAYERS + 1]);
        backend.add_image("k8s.io", "tall", &tall);
        let engine = engine(&backend);
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        let reads = backend.calls(Operation::OpenContent);
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        assert_eq!(backend.calls(Operation::OpenContent), reads);
        // Of another name it is another image.
        backend.add_image("k8s.io", "again", &tall);
        assert_eq!(kind(&engine, "again").await, Kind::InvalidArgument);
        assert!(backend.calls(Operation::OpenContent) > reads);
        let reads = backend.calls(Operation::OpenContent);
        tokio::time::sleep(FAILURE_TIME).await;
        assert_eq!(kind(&engine, "tall").await, Kind::InvalidArgument);
        assert!(backend.calls(Operation::OpenContent) > reads);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_or_hangs_is_read_again() {
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
        assert!(engine.plan(&Request::new("web", "")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_is_made_once_for_all_who_ask() {
        let backend = Simulated::new();
        for name in ["a", "b", "c"] {
            let image = SimulatedImage::new([SimulatedLayer::new(name)]);
            backend.add_image("k8s.io", name, &image);
        }
        let engine = engine(&backend);
        engine.plan(&Request::new("a", "")).await.unwrap();
        let reads = backend.calls(Operation::OpenContent);
        backend.set_faults([1, 2].map(|call| Fault {
            operation: Operation::OpenContent,
            call,
            effect: Effect::Delay(TIME / 10),
        }));
        let start = Instant::now();
        let asks = |name: &'static str| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.plan(&Request::new(name, "")).await })
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
}
