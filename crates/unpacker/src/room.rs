// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bound on the memory that the plans of running jobs take.

use resnap_core::{Error, Kind};

use crate::{Plan, UnpackError};

/// The size in bytes from which a plan is large. Plans of honest images take a tenth of it.
const LARGE: usize = 1 << 20;

/// The limit on the bytes of all large plans of running jobs.
const MAX_RUNNING: usize = 64 << 20;

/// Checks that there is memory for a plan beside those of the running jobs. There may be many, and
/// jobs without waiters may run for long.
///
/// # Errors
/// [`Kind::ResourceExhausted`] if the plan is large and would exceed the limit.
pub(crate) fn require_room<'a>(
    running: impl Iterator<Item = &'a Plan>,
    plan: &Plan,
) -> Result<(), UnpackError> {
    let own = plan.bytes();
    if own <= LARGE {
        return Ok(());
    }
    let others: usize = running
        .map(Plan::bytes)
        .filter(|bytes| *bytes > LARGE)
        .sum();
    if others + own <= MAX_RUNNING {
        return Ok(());
    }
    let reason = format!(
        "its manifest has {own} bytes of annotations and labels, and those of images that are being unpacked {others}, of at most {MAX_RUNNING} together: wait until these are done"
    );
    Err(UnpackError::Image {
        image: plan.image.name.clone(),
        source: Error::new(Kind::ResourceExhausted, "begin", "unpack").with_source(reason),
    })
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{Simulated, SimulatedImage, SimulatedLayer};

    use super::*;
    use crate::{Engine, EngineSettings, Request};

    #[tokio::test]
    async fn large_plans_of_running_jobs_are_bounded_together() {
        let backend = Simulated::new();
        let image = SimulatedImage::new([SimulatedLayer::new("a")]);
        backend.add_image("k8s.io", "web", &image);
        let engine = Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap();
        let plan = engine.plan(&Request::new("web")).await.unwrap();
        let mut large = (*plan).clone();
        let annotation = ("annotation".to_owned(), "x".repeat(4 * LARGE));
        large.layers[0].descriptor.annotations.extend([annotation]);

        let room = |running: usize, wanted| require_room(vec![&large; running].into_iter(), wanted);
        let most = MAX_RUNNING / large.bytes();
        assert!(room(most - 1, &large).is_ok());
        let error = room(most, &large).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert!(error.to_string().contains("web"), "{error}");
        // Small ones are taken in spite of them, and take no room from them.
        assert!(room(2 * most, &plan).is_ok());
        assert!(require_room(vec![&*plan; 100_000].into_iter(), &large).is_ok());
    }
}
