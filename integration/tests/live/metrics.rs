// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The metrics and the health endpoint of `resnap serve`.

mod examples;
pub(crate) mod exposition;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{hello, web};
use resnap_integration::tap::{Action, Method, Point};
use tonic::Code;
use tonic::Status;

use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::proxy::pulled;
use crate::served::Served;
use crate::suite::live_tests;
use examples::metrics_have_dashboards_and_alerts_that_are_valid;
use exposition::Samples;

live_tests! {
    ErofsHandler: metrics_count_completed_work,
    ErofsHandler: metrics_count_running_and_failed_work,
    Containerd: metrics_have_dashboards_and_alerts_that_are_valid,
    OneAlone: metrics_healthz_reports_containerd,
    One: metrics_healthz_answers_under_load,
    Containerd: metrics_refuse_malformed_requests,
}

/// Returns a daemon and the address of its metrics.
fn served(node: &Node, backend: &Path) -> Result<(Served, SocketAddr)> {
    // Free a moment ago; the daemon says so if it is not any more.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let dir = node.containerd.socket().with_file_name(unique("m"));
    // Through a tap, containerd writes the layers.
    let mut command = node.command_with_differ("containerd")?;
    command.arg("--address").arg(backend);
    command.args(["serve", "--metrics-address", &address.to_string()]);
    Ok((Served::begin(&mut command, &dir)?, address))
}

/// Sends a request and returns the whole answer.
fn exchange(address: SocketAddr, request: &str) -> Result<String> {
    let mut stream = None;
    eventually(&format!("{address} accepts"), DEADLINE, || {
        stream = TcpStream::connect(address).ok();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("no stream")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Returns the status line's number, the head and the body of the answer to a GET.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String, String)> {
    let answer = exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let code = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((code, head.to_owned(), body.to_owned()))
}

pub(crate) fn metrics(address: SocketAddr) -> Result<(String, Samples)> {
    let (code, head, text) = get(address, "/metrics")?;
    ensure!(code == 200, "{head}");
    ensure!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let samples = exposition::read(&text).with_context(|| text.clone())?;
    Ok((text, samples))
}

/// Checks that these samples have these values.
fn want(samples: &Samples, values: &[(&str, f64)]) -> Result<()> {
    for (name, value) in values {
        ensure!(
            samples.get(*name) == Some(value),
            "want {name} {value}: {samples:#?}"
        );
    }
    Ok(())
}

fn metrics_count_completed_work(node: &Node) -> Result<()> {
    pulled(node)?;
    let (served, address) = served(node, node.containerd.socket())?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let (_, before) = metrics(address)?;
    want(
        &before,
        &[
            ("resnap_unpacks_total{outcome=\"ready\"}", 0.0),
            ("resnap_unpacks_in_flight", 0.0),
            ("resnap_cri_deadline_answers_total", 0.0),
            ("resnap_cri_forwarded_unready_total{reason=\"failed\"}", 0.0),
        ],
    )?;

    let image = hello()?.reference;
    let sandbox = cri.run_pod_sandbox("erofs", "counted")?;
    cri.run(&sandbox, "container", &image, &[])?;
    let error = cri.create_container(&sandbox, "none", "nobody.example/none:1", &[]);
    let error = error.err().context("made of an image that is not there")?;
    let status = error.downcast_ref::<Status>().context("no status")?;
    ensure!(status.code() == Code::NotFound, "{status:?}");

    let (text, samples) = metrics(address)?;
    for name in ["nobody.example", "docker.io", "library", "sha256"] {
        ensure!(!text.contains(name), "{name} is in\n{text}");
    }
    // The image of three layers, and that of the sandbox, which the CRI of each version knows.
    let layers = samples["resnap_layers_total{outcome=\"applied\"}"];
    let unpacks = samples["resnap_unpacks_total{outcome=\"ready\"}"];
    ensure!(unpacks >= 1.0 && layers >= 3.0, "{samples:#?}");
    ensure!(
        samples["resnap_unpack_duration_seconds_sum{snapshotter=\"erofs\",outcome=\"ready\"}"]
            > 0.0
    );
    want(
        &samples,
        &[
            (
                "resnap_unpack_duration_seconds_count{snapshotter=\"erofs\",outcome=\"ready\"}",
                unpacks,
            ),
            ("resnap_unpacks_total{outcome=\"failed\"}", 0.0),
            ("resnap_unpacks_in_flight", 0.0),
            ("resnap_unpack_cleanup_failures_total", 0.0),
            (
                "resnap_cri_calls_total{method=\"RunPodSandbox\",code=\"OK\"}",
                1.0,
            ),
            (
                "resnap_cri_calls_total{method=\"CreateContainer\",code=\"OK\"}",
                1.0,
            ),
            (
                "resnap_cri_calls_total{method=\"CreateContainer\",code=\"NotFound\"}",
                1.0,
            ),
            (
                "resnap_cri_calls_total{method=\"StartContainer\",code=\"OK\"}",
                1.0,
            ),
        ],
    )?;
    examples::are_of(&samples)?;
    let started = samples["process_start_time_seconds"];
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
    ensure!(
        started < now && started > now - 120.0,
        "started at {started}"
    );

    // No job can start, and the request has a code as a job has.
    let mut none = node.resnap_command()?;
    none.env("RESNAP_RUNTIME_DIR", &served.dir);
    let refused = run_to_end(none.args(["unpack", "--json", "nobody.example/none:1"]))?;
    ensure!(refused.kind()? == "NotFound", "{refused:?}");
    let (_, samples) = metrics(address)?;
    want(
        &samples,
        &[
            ("resnap_unpacks_total{outcome=\"failed\"}", 1.0),
            ("resnap_unpack_failures_total{code=\"NotFound\"}", 1.0),
        ],
    )?;

    // containerd's own API is another's, whatever its method is called.
    ensure!(
        samples
            .keys()
            .all(|name| !name.contains("method=\"other\""))
    );
    let mut own = node.resnap_command()?;
    own.arg("--address").arg(&served.socket).arg("images");
    ensure!(own.status()?.success());
    let (_, samples) = metrics(address)?;
    ensure!(samples["resnap_cri_calls_total{method=\"other\",code=\"OK\"}"] >= 1.0);

    cri.remove_all()?;
    drop(cri);
    served.stop()
}

fn metrics_count_running_and_failed_work(node: &Node) -> Result<()> {
    const IN_FLIGHT: &str = "resnap_unpacks_in_flight";
    const JOINED: &str = "resnap_unpacks_joined_total";
    const ANSWERS: &str = "resnap_cri_deadline_answers_total";
    const EXCEEDED: &str =
        "resnap_cri_calls_total{method=\"CreateContainer\",code=\"DeadlineExceeded\"}";
    const READY: &str = "resnap_unpacks_total{outcome=\"ready\"}";
    pulled(node)?;
    node.import(&web()?)?;
    let tap = node.containerd.tap()?;
    let (served, address) = served(node, tap.socket())?;
    let connect = || Cri::connect(&served.socket, &node.containerd.scratch());
    let (cri, hurried) = (connect()?, connect()?.with_timeout(Duration::from_secs(2)));
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let (_, before) = metrics(address)?;

    let image = hello()?.reference;
    let held = tap.hold(Method::APPLY, 2, Point::Before);
    for (answers, joined) in [(1.0, 0.0), (2.0, 1.0)] {
        let created = hurried.create_container(&sandbox, "slow", &image, &[]);
        let error = created.err().context("created without its image")?;
        let status = error.downcast_ref::<Status>().context("no status")?;
        ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
        let (_, now) = metrics(address)?;
        let values = [
            (IN_FLIGHT, 1.0),
            (JOINED, joined),
            (ANSWERS, answers),
            (EXCEEDED, answers),
        ];
        want(&now, &values)?;
    }
    held.wait()?;
    held.release();
    cri.create_container(&sandbox, "slow", &image, &[])?;
    let (_, now) = metrics(address)?;
    want(&now, &[(IN_FLIGHT, 0.0), (READY, before[READY] + 1.0)])?;

    // It fails, and so does its undoing; containerd makes the layers then, as this snapshotter
    // needs no labels.
    for method in [Method::APPLY, Method::REMOVE] {
        let broken = Action::Fail(Status::internal("broken by the test"));
        tap.on(method, 1, Point::Before, broken);
    }
    cri.create_container(&sandbox, "broken", &web()?.reference, &[])?;
    let (_, now) = metrics(address)?;
    want(
        &now,
        &[
            (IN_FLIGHT, 0.0),
            (READY, before[READY] + 1.0),
            ("resnap_unpacks_total{outcome=\"failed\"}", 1.0),
            ("resnap_unpack_failures_total{code=\"Internal\"}", 1.0),
            (
                "resnap_unpack_duration_seconds_count{snapshotter=\"erofs\",outcome=\"failed\"}",
                1.0,
            ),
            ("resnap_layers_total{outcome=\"failed\"}", 1.0),
            ("resnap_unpack_cleanup_failures_total", 1.0),
            ("resnap_cri_forwarded_unready_total{reason=\"failed\"}", 1.0),
        ],
    )?;
    cri.remove_all()?;
    drop((cri, hurried));
    served.stop()?;
    tap.finish()
}

fn metrics_healthz_reports_containerd(node: &Node) -> Result<()> {
    let (served, address) = served(node, node.containerd.socket())?;
    let becomes = |want: u16| {
        let mut last = String::new();
        eventually(&format!("/healthz answers {want}"), DEADLINE, || {
            let (code, _, body) = get(address, "/healthz")?;
            last = body;
            Ok(code == want)
        })?;
        anyhow::Ok(last)
    };
    ensure!(becomes(200)? == "ok\n");
    node.containerd.kill()?;
    let reason = becomes(503)?;
    ensure!(reason.contains("connect to containerd"), "{reason}");
    node.containerd.restart()?;
    ensure!(becomes(200)? == "ok\n");
    served.stop()?;

    // A server that never answers is not healthy.
    let silent = node.containerd.socket().with_file_name(unique("silent"));
    let _listener = UnixListener::bind(&silent)?;
    let (served, address) = self::served(node, &silent)?;
    let (code, _, reason) = get(address, "/healthz")?;
    ensure!(
        code == 503 && reason.contains("did not answer within 2s"),
        "{code} {reason}"
    );
    served.stop()
}

fn metrics_refuse_malformed_requests(node: &Node) -> Result<()> {
    let (served, address) = served(node, node.containerd.socket())?;
    ensure!(get(address, "/healthz")?.0 == 200);
    for path in ["/", "/metrics/", "/metrics2", "/../metrics"] {
        ensure!(get(address, path)?.0 == 404, "{path}");
    }
    let posted = exchange(
        address,
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    )?;
    ensure!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    let garbage = exchange(address, "\u{0}\u{1}nonsense\r\n\r\n")?;
    ensure!(
        garbage.is_empty() || garbage.starts_with("HTTP/1.1 400 "),
        "{garbage}"
    );

    // Many who say nothing, or not all of it, keep nobody away for long.
    let silent: Vec<TcpStream> = (0..32)
        .map(|number| {
            let mut stream = TcpStream::connect(address)?;
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:")?;
            }
            anyhow::Ok(stream)
        })
        .collect::<Result<_>>()?;
    let asked = Instant::now();
    ensure!(get(address, "/metrics")?.0 == 200);
    // Twice sixteen, three seconds each.
    ensure!(
        asked.elapsed() < Duration::from_secs(12),
        "{:?}",
        asked.elapsed()
    );
    drop(silent);
    served.stop()
}

/// As any process of the node can do: connections are opened again and again, and say little.
fn metrics_healthz_answers_under_load(node: &Node) -> Result<()> {
    let (served, address) = served(node, node.containerd.socket())?;
    ensure!(get(address, "/healthz")?.0 == 200);
    let stop = AtomicBool::new(false);
    let crowd = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let slow = (0..100).map(|_| {
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:")?;
                anyhow::Ok(stream)
            });
            let slow = slow.collect::<Result<Vec<_>>>()?;
            std::thread::sleep(Duration::from_secs(1));
            drop(slow);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let crowd = scope.spawn(crowd);
        std::thread::sleep(Duration::from_millis(300));
        let checks = || -> Result<()> {
            for _ in 0..10 {
                let asked = Instant::now();
                let status = get(address, "/healthz")?.0;
                ensure!(status == 200, "{status}");
                let took = asked.elapsed();
                ensure!(took < Duration::from_secs(1), "{took:?}");
                std::thread::sleep(Duration::from_millis(250));
            }
            Ok(())
        };
        let checked = checks();
        stop.store(true, Ordering::Relaxed);
        crowd.join().map_err(|_| anyhow!("the crowd panicked"))??;
        checked
    })?;
    served.stop()
}
