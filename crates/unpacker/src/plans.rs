// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Plans that are kept, and the making of those that are not.
//!
//! Making one reads and parses what a hostile image may make megabytes of, so few are made at once,
//! in tasks of their own. What fails by what the documents say fails again, and is kept as well;
//! what fails otherwise may work the next time.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnap_core::{Error, Kind};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::{Plan, UnpackError};

/// Most plans that are kept; one of many layers takes half a megabyte.
const MAX_PLANS: usize = 128;

/// Most bytes that they take, about: a hostile image may have megabytes of layers and annotations.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// How many are made at once. Each may hold a document of 8 MiB and what that is parsed to.
const AT_ONCE: usize = 2;

/// How long making one may take: some reads of small files by the backend.
const TIME: Duration = Duration::from_secs(300);

/// How long a failure is kept: the same for one that was taken for the image's by mistake.
const FAILURE_TIME: Duration = Duration::from_secs(600);

/// The plans of an engine. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Plans(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Mutex<HashMap<String, Kept>>,
    making: Semaphore,
}

#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) result: Result<Arc<Plan>, UnpackError>,
    /// About how many it takes.
    bytes: usize,
    /// When it is forgotten.
    until: Option<Instant>,
}

impl Default for Plans {
    fn default() -> Self {
        Self(Arc::new(Inner {
            kept: Mutex::default(),
            making: Semaphore::new(AT_ONCE),
        }))
    }
}

impl Plans {
    /// The plan that is kept by `key`, or else what `make` makes for `image`, in a task of the
    /// runtime; it also says whether it will do so as long as the key is the same. Without a key
    /// nothing is kept.
    pub(crate) async fn get_or_make(
        &self,
        image: &str,
        key: Option<String>,
        make: impl Future<Output = Result<(Plan, bool), UnpackError>> + Send + 'static,
    ) -> Result<Arc<Plan>, UnpackError> {
        if let Some(known) = key.as_ref().and_then(|key| self.get(key)) {
            return known;
        }
        let (plans, name) = (self.clone(), image.to_owned());
        let making = async move { plans.make(name, key, make).await };
        // It goes on when nobody waits, for who asks next.
        let made = tokio::spawn(making.in_current_span()).await;
        made.unwrap_or_else(|error| {
            Err(UnpackError::Broken {
                image: image.to_owned(),
                reason: error.to_string(),
            })
        })
    }

    async fn make(
        &self,
        image: String,
        key: Option<String>,
        make: impl Future<Output = Result<(Plan, bool), UnpackError>>,
    ) -> Result<Arc<Plan>, UnpackError> {
        // Nobody closes it.
        let _permit = self.0.making.acquire().await;
        // Somebody else may have made it while we waited.
        if let Some(known) = key.as_ref().and_then(|key| self.get(key)) {
            return known;
        }
        let made = timeout(TIME, make).await;
        let made = made.unwrap_or_else(|_| {
            let limit = format!("{} s", TIME.as_secs());
            let source = Error::new(Kind::DeadlineExceeded, "read its documents within", limit);
            Err(UnpackError::Image { image, source })
        });
        let (result, lasts) = match made {
            Ok((plan, lasts)) => (Ok(Arc::new(plan)), lasts),
            Err(error) => {
                let lasts = is_the_images(&error);
                (Err(error), lasts)
            }
        };
        if let Some(key) = key.filter(|_| lasts) {
            self.keep(key, result.clone());
        }
        result
    }

    fn get(&self, key: &str) -> Option<Result<Arc<Plan>, UnpackError>> {
        let kept = self.kept();
        let found = kept.get(key)?;
        let is_over = found.until.is_some_and(|until| until <= Instant::now());
        (!is_over).then(|| found.result.clone())
    }

    fn keep(&self, key: String, result: Result<Arc<Plan>, UnpackError>) {
        let (bytes, until) = match &result {
            Ok(plan) => (text_bytes(plan), None),
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

    pub(crate) fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// About how much memory something takes: as much as all of it as text.
fn text_bytes(value: &impl fmt::Debug) -> usize {
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
    use crate::{Engine, Request, Settings};

    fn engine(backend: &Simulated) -> Engine {
        Engine::new(backend.ports(), "k8s.io", Settings::default()).unwrap()
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
    async fn a_plan_is_made_once_for_all_who_ask_and_few_at_once() {
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
