// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The policy: the result of a request, depending on the answer of the unpack service.
//!
//! Time is paused: it advances to the next timer when nothing else can run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use resnap_core::{EnsureProgress, Error, Integrity, Kind, NotReady};
use tempfile::TempDir;
use tokio::time::Instant;

use super::containerd::Containerd;
use super::service::{Answer, Asked, Service};
use crate::deadline::Deadline;
use crate::failures::Failures;
use crate::grpc::Status;
use crate::messages::{
    ContainerConfig, CreateContainerRequest, ImageSpec, Mount, RunPodSandboxRequest,
};
use crate::observe::{ForwardReason, ProxyEvent, ProxyObserver};
use crate::preflight::{Preflight, Resolution, ensure_later};
use crate::requirements::CriRequest;
use crate::runtime::ServiceRuntime;
use crate::settings::{ProxySettings, Unlabelled};
use crate::state::{ClientContext, ProxyState};

const FORWARDED_UNRESOLVED: ProxyEvent = ProxyEvent::Forwarded(ForwardReason::Unresolved);
const FORWARDED_UNLABELLED: ProxyEvent = ProxyEvent::Forwarded(ForwardReason::Unlabelled);
const FORWARDED_FAILED: ProxyEvent = ProxyEvent::Forwarded(ForwardReason::Failed);

#[derive(Default)]
struct Events(Mutex<Vec<ProxyEvent>>);

impl ProxyObserver for Events {
    fn on_event(&self, event: &ProxyEvent) {
        self.0.lock().unwrap().push(*event);
    }
}

/// The context of a client, with everything around it.
struct Bed {
    client: ClientContext,
    service: Arc<Service>,
    containerd: Arc<Containerd>,
    events: Arc<Events>,
    failures: Failures,
    _dir: TempDir,
}

impl Bed {
    fn new(service: Service, unlabelled: Option<Unlabelled>) -> Self {
        let settings = ProxySettings {
            unlabelled,
            ..ProxySettings::default()
        };
        Self::with(service, settings)
    }

    /// Returns a bed in which layers on these snapshotters need a proof.
    fn proving(
        snapshotters: &[&str],
        unlabelled: Option<Unlabelled>,
        answers: impl IntoIterator<Item = Answer>,
    ) -> Self {
        let mut settings = ProxySettings {
            unlabelled,
            ..ProxySettings::default()
        };
        for snapshotter in snapshotters {
            settings.profiles.entry(snapshotter).integrity = Integrity::Signed;
        }
        Self::with(Service::answering(answers), settings)
    }

    fn with(service: Service, settings: ProxySettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd");
        let containerd = Arc::new(Containerd::default());
        containerd.serve(&socket);
        let (service, events) = (Arc::new(service), Arc::new(Events::default()));
        let observer = Arc::clone(&events) as _;
        let state = ProxyState::new(&socket, Arc::clone(&service) as _, settings, Some(observer));
        Self {
            client: ClientContext::detached(&Arc::new(state), &ServiceRuntime::current()),
            service,
            containerd,
            events,
            failures: Failures::default(),
            _dir: dir,
        }
    }

    fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::new(Service::answering(answers), None)
    }

    fn preflight<'a>(
        &'a self,
        request: &'a CriRequest,
        timeout: Option<&'static str>,
    ) -> Preflight<'a> {
        let name = HeaderName::from_static("grpc-timeout");
        let timeout = timeout.map(|timeout| (name, HeaderValue::from_static(timeout)));
        Preflight {
            client: &self.client,
            request,
            deadline: Deadline::of(&HeaderMap::from_iter(timeout)),
            held: None,
            failures: &self.failures,
        }
    }

    async fn before(&self, request: &CriRequest) -> Result<Resolution, Status> {
        self.preflight(request, None).before().await
    }

    fn events(&self) -> Vec<ProxyEvent> {
        self.events.0.lock().unwrap().clone()
    }

    /// Returns for each call of the service whether it may repair.
    fn repairs(&self) -> Vec<bool> {
        self.service
            .asked()
            .iter()
            .map(|asked| asked.repair)
            .collect()
    }
}

fn image(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}

/// Returns a request for a container of `some:1`.
fn container(sandbox: &str, volumes: &[&str]) -> CriRequest {
    let mounts = volumes.iter().map(|name| Mount {
        image: Some(image(name)),
    });
    CriRequest::CreateContainer(CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(ContainerConfig {
            image: Some(image("some:1")),
            mounts: mounts.collect(),
            metadata: None,
        }),
        sandbox_config: None,
    })
}

fn pod(handler: &str) -> CriRequest {
    CriRequest::RunPodSandbox(RunPodSandboxRequest {
        runtime_handler: handler.to_owned(),
        config: None,
    })
}

fn asked(image: &str, snapshotter: &str, repair: bool) -> Asked {
    Asked {
        image: image.to_owned(),
        snapshotter: snapshotter.to_owned(),
        repair,
    }
}

fn unknown() -> Answer {
    Answer::NotReady(NotReady::Unknown)
}

fn unlabelled() -> Answer {
    let error = Error::new(Kind::FailedPrecondition, "check", "some:1");
    Answer::NotReady(NotReady::Unlabelled(error))
}

fn failed() -> Answer {
    let error = Error::new(Kind::DataLoss, "unpack", "some:1");
    Answer::NotReady(NotReady::Failed(error))
}

/// Returns the error of containerd for an image that it could not unpack.
fn unpack_failed() -> Status {
    let text = "failed to create containerd container: error unpacking image: not found";
    Status::new(Kind::NotFound, text)
}

#[tokio::test(start_paused = true)]
async fn the_result_for_a_container_depends_on_snapshotter_and_policy() {
    use Unlabelled::{Fail, Forward, Repair};
    let data_loss = Err(Kind::DataLoss);
    let precondition = Err(Kind::FailedPrecondition);
    // nydus needs labels, which can be set later; stargz needs them when it unpacks; erofs does not.
    for (snapshotter, policy, answer, outcome, event, repair) in [
        ("nydus", None, Answer::Ready, Ok(()), None, true),
        ("nydus", None, unknown(), Ok(()), None, true),
        (
            "nydus",
            None,
            unlabelled(),
            Ok(()),
            Some(FORWARDED_UNLABELLED),
            true,
        ),
        (
            "nydus",
            Some(Repair),
            unlabelled(),
            Ok(()),
            Some(FORWARDED_UNLABELLED),
            true,
        ),
        (
            "nydus",
            Some(Forward),
            unlabelled(),
            Ok(()),
            Some(FORWARDED_UNLABELLED),
            false,
        ),
        ("nydus", Some(Fail), unlabelled(), precondition, None, false),
        ("nydus", Some(Fail), Answer::Ready, Ok(()), None, false),
        ("nydus", Some(Forward), failed(), data_loss, None, false),
        ("nydus", None, failed(), data_loss, None, true),
        (
            "stargz",
            None,
            unlabelled(),
            Ok(()),
            Some(FORWARDED_UNLABELLED),
            false,
        ),
        (
            "stargz",
            Some(Repair),
            unlabelled(),
            Ok(()),
            Some(FORWARDED_UNLABELLED),
            true,
        ),
        ("stargz", None, failed(), data_loss, None, false),
        (
            "erofs",
            None,
            failed(),
            Ok(()),
            Some(FORWARDED_FAILED),
            false,
        ),
        (
            "erofs",
            Some(Repair),
            failed(),
            Ok(()),
            Some(FORWARDED_FAILED),
            false,
        ),
        ("erofs", None, unknown(), Ok(()), None, false),
    ] {
        let case = format!("{snapshotter}, {policy:?}, {answer:?}");
        let bed = Bed::new(Service::answering([answer]), policy);
        let result = bed.before(&container(snapshotter, &[])).await;
        let expected = outcome.map(|()| Resolution::Known);
        assert_eq!(result.map_err(|status| status.kind), expected, "{case}");
        let event = event.or(outcome.is_err().then_some(ProxyEvent::Refused));
        assert_eq!(bed.events(), Vec::from_iter(event), "{case}");
        let asked = [asked("some:1", snapshotter, repair)];
        assert_eq!(bed.service.asked(), asked, "{case}");
        // containerd pulls no image for a container.
        assert_eq!(bed.containerd.count("PullImage"), 0, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_snapshotter_is_not_watched() {
    let bed = Bed::answering([]);
    for request in [container("overlayfs", &[]), pod(""), pod("runc")] {
        assert_eq!(bed.before(&request).await, Ok(Resolution::Known));
    }
    assert_eq!(bed.service.asked(), []);
    assert_eq!(bed.events(), []);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_sandbox_is_unknown_is_forwarded() {
    let bed = Bed::answering([]);
    let missing = Status::new(Kind::NotFound, "no such sandbox");
    bed.containerd.fail("PodSandboxStatus", missing);
    let result = bed.before(&container("nydus", &[])).await;
    assert_eq!(result, Ok(Resolution::Known));
    assert_eq!(bed.service.asked(), []);
    assert_eq!(bed.events(), [FORWARDED_UNRESOLVED]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_sandbox_image_is_pulled_once() {
    // Two pods start at the same time, and only one makes containerd pull.
    let bed = Bed::answering([unknown(), unknown(), Answer::Ready, Answer::Ready]);
    let (first, second) = (pod("nydus"), pod("nydus"));
    let results = tokio::join!(bed.before(&first), bed.before(&second));
    assert_eq!(results, (Ok(Resolution::Known), Ok(Resolution::Known)));
    assert_eq!(bed.containerd.count("PullImage"), 1);
    assert_eq!(bed.events(), [ProxyEvent::Pulled; 2]);
    assert_eq!(
        bed.service.asked(),
        vec![asked("pause:3", "nydus", true); 4]
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_pull_the_service_decides() {
    for (answer, outcome, event) in [
        (unknown(), Ok(Resolution::Known), None),
        (failed(), Err(Kind::DataLoss), Some(ProxyEvent::Refused)),
    ] {
        let bed = Bed::answering([unknown(), answer]);
        let result = bed.before(&pod("nydus")).await;
        assert_eq!(result.map_err(|status| status.kind), outcome);
        let events = [ProxyEvent::Pulled].into_iter().chain(event);
        assert_eq!(bed.events(), events.collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_pull_is_left_to_containerd() {
    let bed = Bed::answering([unknown()]);
    let denied = Status::new(Kind::PermissionDenied, "no credentials");
    bed.containerd.fail("PullImage", denied);
    assert_eq!(bed.before(&pod("nydus")).await, Ok(Resolution::Known));
    assert_eq!(bed.events(), [FORWARDED_UNRESOLVED]);
    assert_eq!(bed.service.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_label_requirement_nothing_is_pulled() {
    let bed = Bed::answering([unknown()]);
    assert_eq!(bed.before(&pod("erofs")).await, Ok(Resolution::Known));
    assert_eq!(bed.containerd.count("PullImage"), 0);
    assert_eq!(bed.events(), []);
}

#[tokio::test(start_paused = true)]
async fn the_image_of_the_first_sandbox_is_made_ready_afterwards() {
    let bed = Bed::answering([Answer::Ready]);
    *bed.containerd.sandbox_image.lock().unwrap() = "";
    assert_eq!(bed.before(&pod("nydus")).await, Ok(Resolution::Unknown));
    assert_eq!(bed.service.asked(), []);
    bed.containerd.received("RunPodSandbox");
    ensure_later(&bed.client, pod("nydus"));
    // A timer would advance the paused time while containerd is being asked.
    for _ in 0..100_000 {
        if !bed.service.asked().is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.service.asked(), [asked("pause:of-pod", "nydus", true)]);
}

#[tokio::test(start_paused = true)]
async fn volumes_are_made_ready_where_the_host_shows_their_files() {
    // erofs of an unknown version shows them.
    let bed = Bed::answering([Answer::Ready, Answer::Ready]);
    let request = container("erofs", &["volume:1", ""]);
    assert_eq!(bed.before(&request).await, Ok(Resolution::Known));
    let all = [
        asked("some:1", "erofs", false),
        asked("volume:1", "erofs", false),
    ];
    assert_eq!(bed.service.asked(), all);
}

#[tokio::test(start_paused = true)]
async fn volumes_that_would_be_empty_are_refused() {
    for is_remote in [true, false] {
        let service = Service {
            is_remote,
            ..Service::answering([Answer::Ready])
        };
        let bed = Bed::new(service, None);
        let result = bed.before(&container("nydus", &["volume:1"])).await;
        match result {
            Ok(resolution) => assert!(!is_remote && resolution == Resolution::Known),
            Err(status) => {
                assert!(is_remote, "{status}");
                assert_eq!(status.kind, Kind::FailedPrecondition);
                assert!(status.message.contains("volume:1"), "{status}");
            }
        }
        // The volume itself gets no labels: it would be empty for certain.
        assert_eq!(bed.service.asked(), [asked("some:1", "nydus", true)]);
    }
}

#[tokio::test(start_paused = true)]
async fn before_its_deadline_the_caller_gets_the_progress() {
    let progress = EnsureProgress {
        done: 1,
        layers: 3,
        percent: 40,
    };
    let bed = Bed::answering([Answer::Progress(progress)]);
    let begin = Instant::now();
    let request = container("nydus", &[]);
    let result = bed.preflight(&request, Some("120S")).before().await;
    assert_eq!(begin.elapsed().as_secs(), 118);
    let text = "unpacking some:1 for nydus: 1 of 3 layers, 40 %, still running";
    assert_eq!(result, Err(Status::new(Kind::DeadlineExceeded, text)));
    assert_eq!(bed.events(), [ProxyEvent::AnsweredEarly]);
}

#[tokio::test(start_paused = true)]
async fn before_its_deadline_the_caller_learns_of_the_pull() {
    let bed = Bed::answering([unknown()]);
    bed.containerd.hanging.lock().unwrap().push("PullImage");
    let request = pod("nydus");
    let result = bed.preflight(&request, Some("120S")).before().await;
    let text = "pulling pause:3, to unpack it for nydus, still running";
    assert_eq!(result, Err(Status::new(Kind::DeadlineExceeded, text)));
    assert_eq!(bed.events(), [ProxyEvent::AnsweredEarly]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_forwarded_only_with_time_left_for_containerd() {
    for (seconds, in_time) in [(109, true), (111, false)] {
        let bed = Bed::answering([Answer::After(Duration::from_secs(seconds))]);
        let request = container("nydus", &[]);
        let result = bed.preflight(&request, Some("120S")).before().await;
        match result {
            Ok(_) => assert!(in_time, "{seconds}"),
            Err(status) => {
                assert!(!in_time, "{seconds}: {status}");
                assert_eq!(status.kind, Kind::DeadlineExceeded);
                assert!(status.message.contains("no time left"), "{status}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_unpack_of_containerd_is_tried_again_after_ours() {
    // On the default snapshotter, too.
    for (snapshotter, answer, again, event) in [
        ("nydus", Answer::Ready, Ok(true), ProxyEvent::Retried),
        ("overlayfs", Answer::Ready, Ok(true), ProxyEvent::Retried),
        ("nydus", failed(), Err(Kind::DataLoss), ProxyEvent::Refused),
        ("overlayfs", unknown(), Ok(false), FORWARDED_FAILED),
    ] {
        let bed = Bed::answering([answer]);
        let request = container(snapshotter, &[]);
        let retry = bed.preflight(&request, None).retry(&unpack_failed()).await;
        assert_eq!(retry.map_err(|status| status.kind), again, "{snapshotter}");
        assert_eq!(bed.events(), [event], "{snapshotter}");
        assert_eq!(bed.repairs(), [false], "{snapshotter}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_sources_are_asked_once_for_a_call() {
    let bed = Bed::answering([failed(), Answer::Ready]);
    let request = container("erofs", &[]);
    // containerd may still have what is needed.
    assert_eq!(bed.before(&request).await, Ok(Resolution::Known));
    let preflight = bed.preflight(&request, None);
    let retry = preflight.retry(&unpack_failed()).await;
    assert_eq!(retry.map_err(|status| status.kind), Err(Kind::DataLoss));
    assert_eq!(bed.service.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_errors_of_containerd_are_final() {
    let bed = Bed::answering([]);
    let request = container("nydus", &[]);
    for status in [
        Status::new(Kind::NotFound, "no such image"),
        Status::new(Kind::Internal, unpack_failed().message),
    ] {
        let retry = bed.preflight(&request, None).retry(&status).await;
        assert_eq!(retry, Ok(false), "{status}");
    }
    assert_eq!(bed.service.asked(), []);
    assert_eq!(bed.events(), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forwarded_whose_layers_lack_the_proof() {
    use Unlabelled::{Fail, Forward, Repair};
    let all = ["nydus", "erofs", "overlayfs"];
    for policy in [None, Some(Forward), Some(Repair), Some(Fail)] {
        for (answer, kind) in [
            (unknown(), Kind::NotFound),
            (unlabelled(), Kind::FailedPrecondition),
            (failed(), Kind::DataLoss),
        ] {
            // One that needs labels, one that does not, and the default.
            for snapshotter in all {
                let case = format!("{policy:?}, {answer:?}, {snapshotter}");
                let answers = [match &answer {
                    Answer::NotReady(error) => Answer::NotReady(error.clone()),
                    _ => Answer::Ready,
                }];
                let bed = Bed::proving(&all, policy, answers);
                let result = bed.before(&container(snapshotter, &[])).await;
                assert_eq!(result.map_err(|status| status.kind), Err(kind), "{case}");
                assert_eq!(bed.events(), [ProxyEvent::Refused], "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_need_a_proof_is_not_forwarded_unresolved() {
    let bed = Bed::proving(&["erofs"], None, []);
    let missing = Status::new(Kind::Unavailable, "no answer");
    bed.containerd.fail("PodSandboxStatus", missing.clone());
    assert_eq!(bed.before(&container("nydus", &[])).await, Err(missing));
    assert_eq!(bed.events(), []);
    // Other snapshotters are as before.
    let bed = Bed::proving(&["erofs"], None, [unlabelled()]);
    let result = bed.before(&container("nydus", &[])).await;
    assert_eq!(result, Ok(Resolution::Known));
    assert_eq!(bed.events(), [FORWARDED_UNLABELLED]);
}

#[tokio::test(start_paused = true)]
async fn the_sandbox_image_needs_its_proof() {
    // It is pulled, so that containerd does not unpack it itself.
    let bed = Bed::proving(&["erofs"], None, [unknown(), Answer::Ready]);
    assert_eq!(bed.before(&pod("erofs")).await, Ok(Resolution::Known));
    assert_eq!(bed.containerd.count("PullImage"), 1);
    let bed = Bed::proving(&["erofs"], None, [unknown(), unknown()]);
    let result = bed.before(&pod("erofs")).await;
    assert_eq!(result.map_err(|status| status.kind), Err(Kind::NotFound));
    let bed = Bed::proving(&["erofs"], None, [unknown()]);
    let denied = Status::new(Kind::PermissionDenied, "no credentials");
    bed.containerd.fail("PullImage", denied.clone());
    assert_eq!(bed.before(&pod("erofs")).await, Err(denied));
    // No source names it.
    let bed = Bed::proving(&["erofs"], None, []);
    *bed.containerd.sandbox_image.lock().unwrap() = "";
    let result = bed.before(&pod("erofs")).await;
    let status = result.unwrap_err();
    assert_eq!(status.kind, Kind::FailedPrecondition);
    assert!(
        status.message.contains("`sandbox_image` in [cri]"),
        "{status}"
    );
    assert_eq!(bed.before(&pod("nydus")).await, Ok(Resolution::Unknown));
}
