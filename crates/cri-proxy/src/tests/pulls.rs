// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Pulls and lookups of images by kubelet, for pods whose sandboxes are ready.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use resnap_core::{EnsureProgress, Error, Integrity, Kind, NotReady};

use super::containerd::IMAGE_ID;
use super::node::{IMAGE_STATUS, Node, PULL_IMAGE, answered, begin};
use super::service::{Answer, Asked, Service};
use crate::grpc::{Status, decode, encode};
use crate::limits::MAX_BACKGROUND;
use crate::messages::{
    ClientImageSpec, ClientPullRequest, ClientSandboxConfig, ImageStatusRequest,
    ImageStatusResponse, PodSandbox, PodSandboxMetadata,
};
use crate::settings::{ProxySettings, When};

const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";
const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

fn metadata(name: &str) -> Option<PodSandboxMetadata> {
    Some(PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        namespace: "shop".to_owned(),
    })
}

fn annotations(pod: &str) -> HashMap<String, String> {
    let seen = (CONFIG_SEEN.to_owned(), format!("time of {pod}"));
    HashMap::from([seen, ("other".to_owned(), "same".to_owned())])
}

/// Returns the sandbox of a pod of this name with this handler.
fn sandbox(name: &str, handler: &str) -> PodSandbox {
    PodSandbox {
        metadata: metadata(name),
        annotations: annotations(name),
        runtime_handler: handler.to_owned(),
        ..PodSandbox::default()
    }
}

/// Returns what kubelet sends to pull `some:1` for a pod.
fn pull_for(pod: &str) -> ClientPullRequest {
    ClientPullRequest {
        image: Some(ClientImageSpec {
            image: "some:1".to_owned(),
            annotations: annotations(pod),
            ..ClientImageSpec::default()
        }),
        sandbox_config: Some(ClientSandboxConfig {
            metadata: metadata(pod),
            annotations: annotations(pod),
        }),
        ..ClientPullRequest::default()
    }
}

/// A node with the pods `a` on erofs, `b` on nydus, `c` on the default handler and `d` on a handler
/// that containerd does not know.
fn node(service: Service, version: &'static str, settings: ProxySettings) -> Node {
    let node = Node::with_settings(service, settings);
    *node.containerd.version.lock().unwrap() = version;
    *node.containerd.sandboxes.lock().unwrap() = vec![
        sandbox("a", "erofs"),
        sandbox("b", "nydus"),
        sandbox("c", ""),
        sandbox("d", "removed"),
    ];
    node
}

/// A service for which the image is ready on these snapshotters.
fn ready_on(ready: &[(&'static str, bool)]) -> Service {
    let service = Service::answering((0..9).map(|_| Answer::Ready));
    let ready = ready
        .iter()
        .map(|&(snapshotter, is_ready)| (snapshotter, vec![is_ready]));
    *service.ready.lock().unwrap() = ready.collect();
    service
}

/// Sends a pull, and returns the body that containerd got.
async fn pulled(node: &Node, request: &Bytes) -> Bytes {
    let client = node.client().await;
    let (response, _to) = begin(&client, PULL_IMAGE, request.clone(), true).await;
    answered(response).await.unwrap();
    let mut pulls = node.containerd.pulls.lock().unwrap();
    assert_eq!(pulls.len(), 1);
    pulls.remove(0).into()
}

const SAFE: [(&str, bool); 2] = [("overlayfs", true), ("erofs", false)];

#[tokio::test]
async fn a_pull_is_steered_by_the_field_that_containerd_reads() {
    for (version, annotation, field) in [
        ("1.7.24", "erofs", ""),
        ("2.1.9", "erofs", ""),
        ("2.2.1", "erofs", ""),
        ("2.2.2", "", "erofs"),
        ("2.4.0", "", "erofs"),
    ] {
        let node = node(ready_on(&SAFE), version, ProxySettings::default());
        let sent = encode(&pull_for("a")).unwrap();
        let body = pulled(&node, &sent).await;
        assert!(body[5..].starts_with(&sent[5..]), "{version}");
        let got: ClientPullRequest = decode(&body).unwrap();
        let (image, config) = (got.image.unwrap(), got.sandbox_config.unwrap());
        let named = config.annotations.get(HANDLER_ANNOTATION);
        assert_eq!(named.map_or("", String::as_str), annotation, "{version}");
        assert_eq!(image.runtime_handler, field, "{version}");
        assert_eq!(image.image, "some:1");
        assert_eq!(
            (image.annotations, config.metadata),
            (annotations("a"), metadata("a"))
        );
    }
}

#[tokio::test]
async fn other_pulls_pass_unchanged() {
    let without_sandbox = ClientPullRequest {
        sandbox_config: None,
        ..pull_for("a")
    };
    let mut by_field = pull_for("a");
    by_field.image.as_mut().unwrap().runtime_handler = "erofs".to_owned();
    let mut by_annotation = pull_for("a");
    let annotation = (HANDLER_ANNOTATION.to_owned(), "other".to_owned());
    by_annotation
        .sandbox_config
        .as_mut()
        .unwrap()
        .annotations
        .extend([annotation]);
    let mut other_uid = pull_for("a");
    let config = other_uid.sandbox_config.as_mut().unwrap();
    config.metadata.as_mut().unwrap().uid = "of an earlier pod".to_owned();
    let safe = || ready_on(&SAFE);
    for (case, version, service, request) in [
        ("no sandbox", "2.1.9", safe(), without_sandbox),
        ("the client names it", "2.1.9", safe(), by_field),
        ("the client names another", "2.1.9", safe(), by_annotation),
        ("no such pod", "2.1.9", safe(), other_uid),
        ("a guest pulls", "2.1.9", safe(), pull_for("b")),
        ("the default handler", "2.1.9", safe(), pull_for("c")),
        ("an unknown handler", "2.1.9", safe(), pull_for("d")),
        ("one snapshotter only", "1.6.20", safe(), pull_for("a")),
        ("an unknown version", "", safe(), pull_for("a")),
        ("an unknown image", "2.1.9", ready_on(&[]), pull_for("a")),
        (
            "the image is nowhere",
            "2.1.9",
            ready_on(&[("overlayfs", false), ("erofs", false)]),
            pull_for("a"),
        ),
        (
            "nothing is missing",
            "2.1.9",
            ready_on(&[("overlayfs", true), ("erofs", true)]),
            pull_for("a"),
        ),
    ] {
        let node = node(service, version, ProxySettings::default());
        let sent = encode(&request).unwrap();
        assert_eq!(pulled(&node, &sent).await, sent, "{case}");
    }
}

#[tokio::test]
async fn the_policy_for_pulls_holds() {
    for (policy, ready, is_steered) in [
        (When::Never, &SAFE[..], false),
        (When::Safe, &SAFE[..], true),
        (When::Always, &[][..], true),
    ] {
        let settings = ProxySettings {
            steer_pulls: policy,
            ..ProxySettings::default()
        };
        let node = node(ready_on(ready), "2.1.9", settings);
        let sent = encode(&pull_for("a")).unwrap();
        let body = pulled(&node, &sent).await;
        assert_eq!(body != sent, is_steered, "{policy:?}");
    }
}

#[tokio::test]
async fn pulls_are_not_steered_to_layers_that_need_a_proof() {
    let mut settings = ProxySettings {
        steer_pulls: When::Always,
        ..ProxySettings::default()
    };
    settings.profiles.entry("erofs").integrity = Integrity::Verity;
    let node = node(ready_on(&SAFE), "2.1.9", settings);
    let sent = encode(&pull_for("a")).unwrap();
    assert_eq!(pulled(&node, &sent).await, sent);
}

#[tokio::test]
async fn sandbox_images_without_a_proof_are_known_before_the_first_pod() {
    for (integrity, is_ready, unproven) in [
        (Integrity::Off, false, None),
        (Integrity::Verity, true, None),
        (Integrity::Verity, false, Some(vec!["erofs".to_owned()])),
    ] {
        let mut settings = ProxySettings {
            sandbox_image: Some("pause:1".to_owned()),
            ..ProxySettings::default()
        };
        settings.profiles.entry("erofs").integrity = integrity;
        let node = node(ready_on(&[("erofs", is_ready)]), "2.1.9", settings);
        let found = node.proxy.unproven_sandbox_image().await.unwrap();
        assert_eq!(found.map(|(_, snapshotters)| snapshotters), unproven);
    }
}

#[tokio::test]
async fn a_handler_that_containerd_ignores_is_not_steered_to_again() {
    let node = node(ready_on(&SAFE), "2.1.9", ProxySettings::default());
    let sent = encode(&pull_for("a")).unwrap();
    assert_ne!(pulled(&node, &sent).await, sent);
    // What containerd did not unpack, the service does.
    node.asked(1).await;
    let asked = node.service.asked();
    assert_eq!(
        (&*asked[0].image, &*asked[0].snapshotter),
        ("some:1", "erofs")
    );
    assert_eq!(pulled(&node, &sent).await, sent);
}

#[tokio::test]
async fn after_a_failure_an_image_is_pulled_as_without_the_proxy() {
    let node = node(ready_on(&SAFE), "2.2.2", ProxySettings::default());
    let sent = encode(&pull_for("a")).unwrap();
    let full = Status::new(Kind::ResourceExhausted, "no space");
    node.containerd.fail("PullImage", full);
    let client = node.client().await;
    let (response, _to) = begin(&client, PULL_IMAGE, sent.clone(), true).await;
    answered(response).await.unwrap_err();
    assert_eq!(pulled(&node, &sent).await, sent);
    // Other images are not affected.
    let mut other = pull_for("a");
    other.image.as_mut().unwrap().image = "other:1".to_owned();
    let sent = encode(&other).unwrap();
    assert_ne!(pulled(&node, &sent).await, sent);
}

#[tokio::test]
async fn a_name_that_has_got_another_image_is_made_ready_on_the_default_snapshotter_too() {
    let service = ready_on(&SAFE);
    let states = [
        ("overlayfs", vec![true, false]),
        ("erofs", vec![false, true]),
    ];
    *service.ready.lock().unwrap() = states.into();
    let node = node(service, "2.2.2", ProxySettings::default());
    let sent = encode(&pull_for("a")).unwrap();
    assert_ne!(pulled(&node, &sent).await, sent);
    node.asked(1).await;
    assert_eq!(node.service.asked()[0].snapshotter, "overlayfs");
}

#[tokio::test]
async fn a_pull_whose_headers_state_its_length_is_not_steered() {
    let node = node(ready_on(&SAFE), "2.2.2", ProxySettings::default());
    let sent = encode(&pull_for("a")).unwrap();
    let request = Request::post(format!("http://localhost{PULL_IMAGE}"))
        .header("content-type", "application/grpc")
        .header("content-length", sent.len());
    let mut client = node.client().await.ready().await.unwrap();
    let (response, mut to) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    to.send_data(sent.clone(), true).unwrap();
    answered(response).await.unwrap();
    assert_eq!(*node.containerd.pulls.lock().unwrap(), [sent.to_vec()]);
}

#[tokio::test]
async fn what_is_missing_after_a_pull_is_made_ready_in_the_background() {
    // The service never answers.
    let service = Service::default();
    let node = node(service, "1.6.20", ProxySettings::default());
    pulled(&node, &encode(&pull_for("a")).unwrap()).await;
    node.asked(1).await;
    let expected = Asked {
        image: "some:1".to_owned(),
        snapshotter: "erofs".to_owned(),
        repair: false,
    };
    assert_eq!(node.service.asked(), [expected]);
    // For a volume, labels on nydus would be wrong.
    for pod in ["b", "c", "d"] {
        pulled(&node, &encode(&pull_for(pod)).unwrap()).await;
    }
    assert_eq!(node.service.asked().len(), 1);
}

#[tokio::test]
async fn a_job_that_runs_after_a_pull_takes_no_place_from_others() {
    let count = MAX_BACKGROUND + 1;
    let runs = || Answer::Progress(EnsureProgress::default());
    let service = Service::answering((0..count).map(|_| runs()));
    let node = node(service, "1.6.20", ProxySettings::default());
    let sent = encode(&pull_for("a")).unwrap();
    for pulls in 1..=count {
        pulled(&node, &sent).await;
        node.asked(pulls).await;
    }
}

/// Returns what kubelet sends to look up `some:1` for a pod.
fn lookup_for(pod: &str) -> ImageStatusRequest {
    ImageStatusRequest {
        image: Some(ClientImageSpec {
            image: "some:1".to_owned(),
            annotations: annotations(pod),
            ..ClientImageSpec::default()
        }),
    }
}

fn denied() -> Answer {
    let error = Error::new(Kind::NotFound, "unpack", "some:1");
    Answer::NotReady(NotReady::Denied(error))
}

fn failed() -> Answer {
    let error = Error::new(Kind::NotFound, "unpack", "some:1");
    Answer::NotReady(NotReady::Failed(error))
}

/// Returns whether the image is reported as present.
async fn is_present(node: &Node, request: &ImageStatusRequest) -> bool {
    let client = node.client().await;
    let body = encode(request).unwrap();
    let (response, _to) = begin(&client, IMAGE_STATUS, body, true).await;
    let body = answered(response).await.unwrap();
    let response: ImageStatusResponse = decode(&body).unwrap();
    let id = response.image.map(|image| image.id);
    assert!(id.is_none() || id.as_deref() == Some(IMAGE_ID));
    id.is_some()
}

/// The settings of a node with a kubelet without records.
fn old_kubelet() -> (tempfile::TempDir, ProxySettings) {
    let dir = tempfile::tempdir().unwrap();
    let settings = ProxySettings {
        kubelet_root: dir.path().to_owned(),
        ..ProxySettings::default()
    };
    (dir, settings)
}

#[tokio::test]
async fn an_image_that_lacks_credentials_is_reported_as_absent_to_its_pod() {
    let mut by_field = lookup_for("unknown");
    by_field.image.as_mut().unwrap().runtime_handler = "erofs".to_owned();
    let mut contradiction = lookup_for("c");
    contradiction.image.as_mut().unwrap().runtime_handler = "erofs".to_owned();
    let mut bare = lookup_for("a");
    bare.image.as_mut().unwrap().annotations.clear();
    let mut bare_handler = by_field.clone();
    bare_handler.image.as_mut().unwrap().annotations.clear();
    for (case, answer, request, present, asked) in [
        ("it is denied", denied(), lookup_for("a"), false, 1),
        ("kubelet names the handler", denied(), by_field, false, 1),
        ("it is ready", Answer::Ready, lookup_for("a"), true, 1),
        ("it fails", failed(), lookup_for("a"), true, 1),
        ("two handlers", denied(), contradiction, true, 0),
        ("no annotations", denied(), bare, true, 0),
        ("a handler alone", denied(), bare_handler, true, 0),
        ("no such pod", denied(), lookup_for("unknown"), true, 0),
        ("a guest pulls", denied(), lookup_for("b"), true, 0),
        ("the default handler", denied(), lookup_for("c"), true, 0),
        ("an unknown handler", denied(), lookup_for("d"), true, 0),
    ] {
        let (_dir, settings) = old_kubelet();
        let node = node(Service::answering([answer]), "2.1.9", settings);
        assert_eq!(is_present(&node, &request).await, present, "{case}");
        assert_eq!(node.service.asked().len(), asked, "{case}");
    }
}

#[tokio::test]
async fn two_pods_of_one_time_with_two_handlers_are_left_to_containerd() {
    let (_dir, settings) = old_kubelet();
    let node = node(Service::answering([denied()]), "2.1.9", settings);
    let mut other = sandbox("other", "nydus");
    other.annotations = annotations("a");
    node.containerd.sandboxes.lock().unwrap().push(other);
    assert!(is_present(&node, &lookup_for("a")).await);
    assert_eq!(node.service.asked(), []);
}

#[tokio::test]
async fn the_records_of_kubelet_decide_unless_the_policy_does() {
    let record = |id: &str| format!(r#"{{"imageRef":"{id}","credentialMapping":{{}}}}"#);
    let (named, other) = (record(IMAGE_ID), record("sha256:other"));
    for (policy, record, present) in [
        (When::Safe, None, true),
        (When::Safe, Some(named.clone()), false),
        (When::Safe, Some(other), true),
        (When::Safe, Some("{".to_owned()), true),
        (When::Always, None, false),
        (When::Never, Some(named), true),
    ] {
        let (dir, mut settings) = old_kubelet();
        let pulled = dir.path().join("image_manager/pulled");
        fs::create_dir_all(&pulled).unwrap();
        let hash = resnap_core::Digest::sha256(IMAGE_ID.as_bytes());
        let case = format!("{policy:?}, {record:?}");
        if let Some(record) = record {
            fs::write(pulled.join(format!("sha256-{}", hash.encoded())), record).unwrap();
        }
        settings.image_status = policy;
        let node = node(Service::answering([denied()]), "2.1.9", settings);
        assert_eq!(is_present(&node, &lookup_for("a")).await, present, "{case}");
    }
}

#[tokio::test]
async fn right_after_a_pull_an_image_is_present() {
    let (_dir, settings) = old_kubelet();
    let service = Service::answering((0..9).map(|_| denied()));
    let node = node(service, "2.1.9", settings);
    assert!(!is_present(&node, &lookup_for("a")).await);
    // What another pod pulls changes nothing for this one.
    pulled(&node, &encode(&pull_for("c")).unwrap()).await;
    assert!(!is_present(&node, &lookup_for("a")).await);
    pulled(&node, &encode(&pull_for("a")).unwrap()).await;
    assert!(is_present(&node, &lookup_for("a")).await);
}

#[tokio::test]
async fn a_decision_is_made_once_for_a_pod() {
    let (_dir, settings) = old_kubelet();
    let node = node(
        Service::answering([denied(), Answer::Ready]),
        "2.1.9",
        settings,
    );
    for _ in 0..3 {
        assert!(!is_present(&node, &lookup_for("a")).await);
    }
    assert_eq!(node.service.asked().len(), 1);
    let mut other = sandbox("other", "erofs");
    other.metadata = metadata("other");
    node.containerd.sandboxes.lock().unwrap().push(other);
    assert!(is_present(&node, &lookup_for("other")).await);
}

#[tokio::test]
async fn a_decision_that_takes_too_long_is_left_to_containerd_until_it_is_made() {
    let (_dir, settings) = old_kubelet();
    let late = Answer::DeniedAfter(Duration::from_secs(6));
    let node = node(Service::answering([late]), "2.1.9", settings);
    // The second time it does not wait.
    for _ in 0..2 {
        assert!(is_present(&node, &lookup_for("a")).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!is_present(&node, &lookup_for("a")).await);
    assert_eq!(node.service.asked().len(), 1);
}

#[tokio::test]
async fn a_decision_is_made_once_for_requests_at_once() {
    let (_dir, settings) = old_kubelet();
    let late = Answer::DeniedAfter(Duration::from_secs(1));
    let node = node(Service::answering([late]), "2.1.9", settings);
    let lookup = lookup_for("a");
    let (one, other) = tokio::join!(is_present(&node, &lookup), is_present(&node, &lookup));
    assert_eq!((one, other), (false, false));
    assert_eq!(node.service.asked().len(), 1);
}

#[tokio::test]
async fn without_containerd_nothing_is_decided() {
    let (_dir, settings) = old_kubelet();
    let node = node(Service::answering([denied()]), "2.1.9", settings);
    for method in ["ListPodSandbox", "Status"] {
        node.containerd
            .fail(method, Status::new(Kind::Internal, "broken"));
        assert!(is_present(&node, &lookup_for("a")).await, "{method}");
    }
    let sent = encode(&pull_for("a")).unwrap();
    let broken = Status::new(Kind::Internal, "broken");
    node.containerd.fail("ListPodSandbox", broken);
    assert_eq!(pulled(&node, &sent).await, sent);
}
