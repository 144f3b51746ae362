// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Clients that share a proxy, in front of something that answers as containerd does.

use std::collections::HashMap;
use std::sync::{Barrier, Mutex};

use async_trait::async_trait;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use prost::encoding::{WireType, encode_key, encode_varint};
use resnap_core::{EnsureProgress, EnsureRequest, NotReady};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::grpc::{DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, code_in, decode, encode};
use crate::messages::{Nothing, PodSandboxStatusRequest, PodSandboxStatusResponse, StatusResponse};

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const RUN_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy with its service, in front of what answers as containerd does.
struct Node {
    proxy: Proxy,
    service: Arc<Service>,
    /// Paths of the calls that containerd got to their ends.
    calls: Arc<Mutex<Vec<String>>>,
    stop: watch::Sender<bool>,
    served: JoinHandle<io::Result<()>>,
    dir: TempDir,
}

/// Images that are never ready.
#[derive(Default)]
struct Service {
    /// Who is asked for one.
    asked: Mutex<usize>,
    news: Notify,
    /// If any, the thread that asks waits there, and does nothing else meanwhile.
    planning: Option<Barrier>,
}

#[async_trait]
impl UnpackService for Service {
    async fn ensure(
        &self,
        _want: EnsureRequest<'_>,
        _tell: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady> {
        *self.asked.lock().unwrap() += 1;
        self.news.notify_waiters();
        if let Some(planning) = &self.planning {
            planning.wait();
            return Ok(());
        }
        std::future::pending().await
    }

    async fn is_remote(&self, _image: &str, _snapshotter: &str) -> Result<bool, NotReady> {
        Ok(false)
    }
}

impl Node {
    fn start(service: Service) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let calls = Arc::default();
        let containerd = UnixListener::bind(dir.path().join("containerd")).unwrap();
        tokio::spawn(serve_as_containerd(containerd, Arc::clone(&calls)));
        let service = Arc::new(service);
        let proxy = Proxy::new(
            &dir.path().join("containerd"),
            Arc::clone(&service) as _,
            ProxySettings::default(),
            None,
        );
        let listener = UnixListener::bind(dir.path().join("proxy")).unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = proxy.clone();
        let serve = async move { serving.serve(listener, stopped, DEADLINE).await };
        let served = tokio::spawn(serve);
        Self {
            proxy,
            service,
            calls,
            stop,
            served,
            dir,
        }
    }

    async fn client(&self) -> SendRequest<Bytes> {
        let stream = UnixStream::connect(self.dir.path().join("proxy"));
        let window = 64 << 20;
        let handshake = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(window)
            .handshake(stream.await.unwrap());
        let (client, driver) = handshake.await.unwrap();
        tokio::spawn(driver);
        client
    }

    /// Waits until so many images have been asked for.
    async fn asked(&self, count: usize) {
        let all = async {
            loop {
                let news = self.service.news.notified();
                if *self.service.asked.lock().unwrap() >= count {
                    return;
                }
                news.await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.unwrap();
    }

    fn count(&self, path: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| *call == path).count()
    }
}

async fn serve_as_containerd(listener: UnixListener, calls: Arc<Mutex<Vec<String>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let calls = Arc::clone(&calls);
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer_as_containerd(request, respond, Arc::clone(&calls)));
            }
        });
    }
}

async fn answer_as_containerd(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    calls: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let (head, mut from) = request.into_parts();
    let mut body = Vec::new();
    while let Some(bytes) = from.data().await {
        let bytes = bytes.ok()?;
        from.flow_control().release_capacity(bytes.len()).ok()?;
        body.extend_from_slice(&bytes);
    }
    let path = head.uri.path();
    calls.lock().unwrap().push(path.to_owned());
    let answer = match path.rsplit_once('/')?.1 {
        "Status" => {
            let own = |name: &str| format!(r#""{name}": {{ "snapshotter": "{name}" }}"#);
            let (nydus, erofs) = (own("nydus"), own("erofs"));
            let config = format!(
                r#"{{ "sandboxImage": "pause:3", "containerd": {{ "snapshotter": "overlayfs", "runtimes": {{ {nydus}, {erofs} }} }} }}"#
            );
            encode(&StatusResponse {
                info: HashMap::from([("config".to_owned(), config)]),
            })
        }
        // A pod is called by its snapshotter.
        "PodSandboxStatus" => {
            let name = decode::<PodSandboxStatusRequest>(&body)?.pod_sandbox_id;
            let info = format!(r#"{{ "snapshotter": "{name}" }}"#);
            encode(&PodSandboxStatusResponse {
                status: None,
                info: HashMap::from([("info".to_owned(), info)]),
            })
        }
        _ => encode(&Nothing {}),
    };
    let mut to = respond.send_response(Response::new(()), false).ok()?;
    to.send_data(answer.ok()?, false).ok()?;
    let ok = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 0.into())]);
    to.send_trailers(ok).ok()
}

/// A call whose message may not come to its end.
async fn begin(
    client: &SendRequest<Bytes>,
    path: &str,
    body: Bytes,
    end: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "60S");
    let mut client = client.clone().ready().await.unwrap();
    let (reply, mut to) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    to.send_data(body, end).unwrap();
    (reply, to)
}

/// The code and the text that a call ends with.
async fn ended(reply: ResponseFuture) -> (u16, String) {
    let all = async {
        let (head, mut from) = reply.await.unwrap().into_parts();
        if let Some(status) = Status::in_headers(&head.headers) {
            return (status.code, status.message);
        }
        while let Some(bytes) = from.data().await {
            bytes.unwrap();
        }
        let trailers = from.trailers().await.unwrap().unwrap();
        (code_in(&trailers).unwrap(), String::new())
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap()
}

async fn call(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> (u16, String) {
    ended(begin(client, path, body, true).await.0).await
}

/// A request for a container in the pod of this name, of about this many bytes.
fn container(sandbox: &str, length: usize) -> Bytes {
    let mut image = Vec::new();
    field(1, b"some:1", &mut image);
    let mut config = Vec::new();
    field(2, &image, &mut config);
    let mut message = Vec::new();
    field(1, sandbox.as_bytes(), &mut message);
    field(2, &config, &mut message);
    field(9, &vec![7; length], &mut message);
    framed(&message)
}

/// A request for a pod with this handler, of about this many bytes.
fn pod(handler: &str, length: usize) -> Bytes {
    let mut config = Vec::new();
    field(9, &vec![7; length], &mut config);
    let mut message = Vec::new();
    field(1, &config, &mut message);
    field(2, handler.as_bytes(), &mut message);
    framed(&message)
}

fn field(tag: u32, bytes: &[u8], message: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, message);
    encode_varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

#[tokio::test]
async fn pods_start_while_large_requests_wait_for_their_images() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(
            begin(
                &client,
                CREATE_CONTAINER,
                container("nydus", 1_048_000),
                true,
            )
            .await,
        );
    }
    node.asked(4).await;
    for (path, body) in [
        (CREATE_CONTAINER, container("overlayfs", 5_000)),
        (CREATE_CONTAINER, container("overlayfs", 1_500_000)),
        (RUN_POD_SANDBOX, pod("", 5_000)),
        (RUN_POD_SANDBOX, pod("", 300_000)),
    ] {
        assert_eq!(call(&client, path, body).await.0, 0, "{path}");
    }
    // Nor is there none for the fifth of them.
    waiting.push(
        begin(
            &client,
            CREATE_CONTAINER,
            container("nydus", 1_048_000),
            true,
        )
        .await,
    );
    node.asked(5).await;
    assert_eq!(node.count(CREATE_CONTAINER), 2);
}

#[tokio::test]
async fn past_the_bound_the_largest_is_answered_early() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    let largest = container("nydus", 4_100_000);
    let (largest, _to) = begin(&client, CREATE_CONTAINER, largest, true).await;
    node.asked(1).await;
    let mut waiting = Vec::new();
    for count in 2..18 {
        waiting.push(
            begin(
                &client,
                CREATE_CONTAINER,
                container("nydus", 4_000_000),
                true,
            )
            .await,
        );
        node.asked(count).await;
    }
    let (code, text) = ended(largest).await;
    assert_eq!(code, DEADLINE_EXCEEDED);
    assert!(text.starts_with("unpacking some:1 for nydus: "), "{text}");
    assert!(text.ends_with("still running"), "{text}");
    assert_eq!(node.count(CREATE_CONTAINER), 0);
    // The others go on waiting.
    for (reply, _to) in waiting {
        let early = tokio::time::timeout(Duration::ZERO, reply).await;
        assert!(early.is_err());
    }
}

#[tokio::test]
async fn without_room_only_what_goes_wrong_unseen_is_refused() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    // It takes all the room there is, and does not come to its end for as long as it may.
    let stalled = container("nydus", 4_190_000).slice(..100_000);
    let (mut stalled, _to) = begin(&client, CREATE_CONTAINER, stalled, false).await;
    tokio::time::timeout(Duration::from_millis(300), &mut stalled)
        .await
        .unwrap_err();
    let large = 200_000;
    let (refused, small, on_erofs, plain, any) = tokio::join!(
        call(&client, CREATE_CONTAINER, container("nydus", large)),
        async {
            let small = begin(&client, CREATE_CONTAINER, container("nydus", 20_000), true).await;
            node.asked(1).await;
            small
        },
        call(&client, CREATE_CONTAINER, container("erofs", large)),
        call(&client, CREATE_CONTAINER, container("overlayfs", large)),
        call(&client, RUN_POD_SANDBOX, pod("nydus", large)),
    );
    assert_eq!(refused.0, RESOURCE_EXHAUSTED, "{}", refused.1);
    drop(small);
    assert_eq!((on_erofs.0, plain.0), (0, 0));
    // Its handler comes last, and some handler's images go wrong.
    assert_eq!(any.0, RESOURCE_EXHAUSTED, "{}", any.1);
    assert_eq!(node.count(CREATE_CONTAINER), 2);
    assert_eq!(node.count(RUN_POD_SANDBOX), 0);
    let (code, text) = ended(stalled).await;
    assert_eq!(code, DEADLINE_EXCEEDED);
    assert!(text.contains("did not come"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_calls_end_is_served() {
    let node = Node::start(Service {
        planning: Some(Barrier::new(2)),
        ..Service::default()
    });
    let client = node.client().await;
    let (reply, _to) = begin(&client, CREATE_CONTAINER, container("nydus", 10), true).await;
    node.asked(1).await;
    node.stop.send_replace(true);
    // Until the last of the calls has ended, and also when the first are not taken any more.
    for wait in [0, 1500] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let version = call(&node.client().await, VERSION, container("", 0)).await;
        assert_eq!(version.0, 0);
    }
    let service = Arc::clone(&node.service);
    let planned = move || service.planning.as_ref().unwrap().wait();
    tokio::task::spawn_blocking(planned).await.unwrap();
    assert_eq!(ended(reply).await.0, 0);
    let served = tokio::time::timeout(DEADLINE / 2, node.served).await;
    served.unwrap().unwrap().unwrap();
    let late = UnixStream::connect(node.dir.path().join("proxy")).await;
    assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planning_keeps_no_call_waiting() {
    let node = Node::start(Service {
        planning: Some(Barrier::new(2)),
        ..Service::default()
    });
    let client = node.client().await;
    let (reply, _to) = begin(&client, CREATE_CONTAINER, container("nydus", 10), true).await;
    node.asked(1).await;
    let version = call(&node.client().await, VERSION, container("", 0)).await;
    assert_eq!(version.0, 0);
    let service = Arc::clone(&node.service);
    let planned = move || service.planning.as_ref().unwrap().wait();
    tokio::task::spawn_blocking(planned).await.unwrap();
    assert_eq!(ended(reply).await.0, 0);
}

#[tokio::test]
async fn who_hangs_is_not_alive() {
    let node = Node::start(Service::default());
    let client = node.client().await;
    assert_eq!(call(&client, VERSION, Bytes::new()).await.0, 0);
    let alive = || tokio::time::timeout(Duration::from_millis(200), node.proxy.alive());
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();

    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let thread = node.proxy.0.thread().unwrap();
    let hung = thread.spawn(async move { wait.recv() });
    assert!(alive().await.is_err());
    go_on.send(()).unwrap();
    hung.await.unwrap().unwrap();
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();

    // Nor does it say that it hangs once nobody is served.
    drop(client);
    node.stop.send_replace(true);
    node.served.await.unwrap().unwrap();
    tokio::time::timeout(DEADLINE, node.proxy.alive())
        .await
        .unwrap();
}
