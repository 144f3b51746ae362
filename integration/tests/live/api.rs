// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon's own API, and the commands that use it.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper_util::rt::TokioIo;
use resnap_integration::cri::Cri;
use resnap_integration::image::hello;
use resnap_integration::tap::{Method, Point, Tap};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::command::{CommandOutput, run_to_end};
use crate::node::{Node, differ_config, unique};
use crate::poll::{DEADLINE, eventually};
use crate::proxy::pulled;
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    One: api_and_process_have_the_same_output,
    ErofsHandler: api_joins_commands_and_pods,
    Containerd: api_cancels_a_job_for_all_callers,
    Containerd: api_signals_spare_the_jobs_of_others,
    Containerd: api_socket_is_for_root_and_one_daemon,
    Containerd: api_daemon_is_killed_and_the_next_goes_on,
    Containerd: api_daemon_stops_after_its_calls,
}

const ON: &str = "native";

/// A daemon in front of a tap, and the commands that connect to it.
pub(crate) struct Through<'a> {
    node: &'a Node,
    pub(crate) tap: Tap,
    pub(crate) served: Served,
}

impl<'a> Through<'a> {
    /// Starts it with containerd's differ, so that the tap sees every layer.
    pub(crate) fn start(node: &'a Node) -> Result<Self> {
        Self::start_by("containerd", node)
    }

    /// Starts it with this differ for all layers.
    pub(crate) fn start_by(differ: &str, node: &'a Node) -> Result<Self> {
        let tap = node.containerd.tap()?;
        let served = Served::configured(node, tap.socket(), &differ_config(differ))?;
        let this = Self { node, tap, served };
        eventually("the daemon answers", DEADLINE, || {
            Ok(this.resnap(&["jobs"])?.code == Some(0))
        })?;
        Ok(this)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.node.resnap_command()?;
        command
            .env("CONTAINERD_ADDRESS", self.tap.socket())
            .env("RESNAP_CONFIG", self.served.dir.join("config.toml"))
            .env("RESNAP_RUNTIME_DIR", &self.served.dir)
            .args(arguments);
        Ok(command)
    }

    pub(crate) fn resnap(&self, arguments: &[&str]) -> Result<CommandOutput> {
        run_to_end(&mut self.command(arguments)?)
    }

    fn unpack(&self) -> Result<Running> {
        let arguments = ["unpack", "--json", "hello:1", "--snapshotter", ON];
        Running::start(&mut self.command(&arguments)?)
    }

    pub(crate) fn jobs(&self) -> Result<Vec<Value>> {
        let jobs = self.resnap(&["jobs", "--json"])?.json()?;
        Ok(jobs.as_array().context("no array")?.clone())
    }

    /// Waits until there is one job and it meets the condition; returns the job.
    pub(crate) fn job(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Vec::new();
        let found = eventually(what, DEADLINE, || {
            last = self.jobs()?;
            Ok(last.len() == 1 && is_so(&last[0]))
        });
        found.with_context(|| format!("the jobs are {last:?}"))?;
        last.pop().context("no job")
    }

    pub(crate) fn end(self) -> Result<()> {
        let socket = self.served.dir.join("api.sock");
        self.served.stop()?;
        ensure!(!socket.exists(), "its socket is left");
        self.tap.finish()
    }
}

/// A running command.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.0.id())?).context("no process")?;
        Ok(kill_process(pid, Signal::INT)?)
    }

    /// Kills it, as a crash does.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    pub(crate) fn end(self) -> Result<CommandOutput> {
        let output = self.0.wait_with_output()?;
        Ok(CommandOutput {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// Waits for it and returns its report.
    pub(crate) fn report(self) -> Result<Value> {
        self.end()?.report()
    }
}

fn applied(report: &Value) -> usize {
    let layers = report["layers"].as_array().into_iter().flatten();
    layers.filter(|layer| layer["outcome"] == "applied").count()
}

/// Returns the output without its times and its namespace, which differ each time.
fn told(node: &Node, output: CommandOutput) -> Result<(Option<i32>, String, String)> {
    let timeless = |text: &str| {
        let text = text.replace(&node.namespace, "NAMESPACE");
        let lines = text.lines().map(|line| {
            let Ok(mut value) = serde_json::from_str::<Value>(line) else {
                let words = line.split(' ');
                let words = words.filter(|word| word.parse::<f64>().is_err());
                return words.collect::<Vec<_>>().join(" ");
            };
            value["seconds"] = json!(0);
            value["report"]["seconds"] = json!(0);
            let layers = value["report"]["layers"].as_array_mut();
            for layer in layers.into_iter().flatten() {
                layer["seconds"] = json!(0);
                layer["stages"] = json!([]);
            }
            value.to_string()
        });
        // Layers are written side by side, and how far they are is told as time passes.
        let mut lines: Vec<String> = lines.filter(|line| !line.contains("progress")).collect();
        lines.sort();
        lines.join("\n")
    };
    Ok((
        output.code,
        timeless(&output.stdout),
        timeless(&output.stderr),
    ))
}

fn api_and_process_have_the_same_output(node: &Node) -> Result<()> {
    let alone = Node {
        containerd: Arc::clone(&node.containerd),
        namespace: unique("alone"),
    };
    for node in [node, &alone] {
        node.import(&hello()?)?;
    }
    let through = Through::start(node)?;
    let mut watch = Running::start(&mut through.command(&["jobs", "--watch"])?)?;
    let mut watched = BufReader::new(watch.0.stdout.take().context("no output")?);
    let mut header = String::new();
    watched.read_line(&mut header)?;
    ensure!(header.starts_with("ID"), "{header:?}");

    for arguments in [
        &["check", "hello:1", "--snapshotter", ON][..],
        &["unpack", "hello:1", "--snapshotter", ON, "--json"],
        &["unpack", "hello:1", "--snapshotter", ON],
        &["check", "hello:1", "--snapshotter", ON],
        &["check", "hello:1", "--json"],
        &["unpack", "nobody:1", "--snapshotter", ON, "--json"],
        &["unpack", "nobody:1", "--snapshotter", ON],
        &["unpack", "hello:1", "--snapshotter", "nosuch", "--json"],
        &["check", "hello:1", "--snapshotter", "nosuch"],
        &["check", "nobody:1", "--json"],
        &["check", "hello:1", "--platform", "linux/mips"],
    ] {
        let here = told(&alone, alone.resnap(arguments)?)?;
        let there = told(node, through.resnap(arguments)?)?;
        ensure!(here == there, "{arguments:?}: {here:#?}\nand {there:#?}");
    }

    let Through { served, tap, .. } = through;
    served.stop()?;
    let seen = watched.lines().collect::<std::io::Result<Vec<_>>>()?;
    let saw = |words: &[&str]| {
        let has = |line: &&String| words.iter().all(|word| line.contains(word));
        seen.iter().any(|line| has(&line))
    };
    let reference = &hello()?.reference;
    ensure!(
        saw(&["1  ", "done", "3/3", "(100 %)", "api", ON, reference]),
        "{seen:#?}"
    );
    ensure!(saw(&["failed", "nosuch"]), "{seen:#?}");
    let output = watch.end()?;
    ensure!(output.code == Some(2), "{output:?}");
    ensure!(output.stderr.contains("the daemon stops"), "{output:?}");
    node.assert_nothing_left(ON)?;
    tap.finish()
}

fn api_joins_commands_and_pods(node: &Node) -> Result<()> {
    pulled(node)?;
    let image = hello()?;
    let through = Through::start(node)?;
    let cri = Cri::connect(&through.served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "pod")?;
    let before = [Method::APPLY, Method::COMMIT, Method::LEASE_CREATE].map(|method| {
        let count = through.tap.count(method);
        (method, count)
    });
    let held = through.tap.hold(Method::APPLY, 1, Point::Before);
    let unpack = ["unpack", "--json", "hello:1", "--snapshotter", "erofs"];
    let first = Running::start(&mut through.command(&unpack)?)?;
    held.wait()?;
    let second = Running::start(&mut through.command(&unpack)?)?;
    let pod = std::thread::spawn({
        let reference = image.reference.clone();
        move || {
            let created = cri.create_container(&sandbox, "c", &reference, &[]);
            (cri, created)
        }
    });
    let job = through.job("three wait", |job| job["waiters"] == 3)?;
    let want = json!({
        "id": job["id"], "image": image.reference, "snapshotter": "erofs",
        "platform": job["platform"], "origin": "api", "state": "running",
        "started": job["started"], "layers": 3, "ready_layers": 0,
        "bytes": image.layers.iter().map(|layer| layer.size).sum::<u64>(), "ready_bytes": 0,
        // A layer may be read before its turn comes.
        "read_bytes": job["read_bytes"],
        "waiters": 3, "waits_for": null, "failure": null,
    });
    ensure!(job == want, "{job}\nwant {want}");
    let table = through.resnap(&["jobs"])?.ok()?;
    let rows: Vec<&str> = table.lines().collect();
    ensure!(rows.len() == 2 && rows[0].starts_with("ID"), "{table}");
    ensure!(rows[1].ends_with(&image.reference), "{table}");
    held.release();
    for command in [first, second] {
        let report = command.report()?;
        ensure!(applied(&report) == 3, "{report}");
    }
    let (cri, created) = pod
        .join()
        .map_err(|_| anyhow!("the pod's client panicked"))?;
    created?;
    for ((method, before), more) in before.into_iter().zip([3, 3, 1]) {
        let count = through.tap.count(method) - before;
        ensure!(count == more, "{count} more of {method}, want {more}");
    }
    ensure!(through.jobs()?.is_empty());
    cri.remove_all()?;
    drop(cri);
    through.end()?;
    node.assert_nothing_left("erofs")
}

fn api_cancels_a_job_for_all_callers(node: &Node) -> Result<()> {
    node.import(&hello()?)?;
    let through = Through::start(node)?;
    let held = through.tap.hold(Method::APPLY, 2, Point::Before);
    let callers = [through.unpack()?, through.unpack()?];
    held.wait()?;
    let job = through.job("two wait", |job| job["waiters"] == 2)?;
    ensure!(job["ready_layers"] == 1, "{job}");
    let id = job["id"].to_string();
    let cancelled = through.resnap(&["cancel", &id])?.ok()?;
    let want = format!("job {id} cancelled: docker.io/library/hello:1 on {ON}\n");
    ensure!(cancelled == want, "{cancelled:?}");
    for caller in callers {
        // Not by a signal to them.
        let output = caller.end()?;
        let error = output.error()?;
        ensure!(error["kind"] == "Cancelled", "{error}");
    }
    ensure!(through.jobs()?.is_empty());
    node.assert_no_active_snapshot(ON)?;
    let (snapshots, leases) = (node.snapshots(ON)?, node.leases()?);
    ensure!(
        snapshots.len() == 1 && leases.len() == 1,
        "{snapshots:?} {leases:?}"
    );
    held.release();

    let gone = through.resnap(&["cancel", "--json", &id])?.error()?;
    ensure!(gone["kind"] == "NotFound", "{gone}");
    let report = through.unpack()?.report()?;
    ensure!(applied(&report) == 2, "{report}");
    through.end()?;
    node.assert_nothing_left(ON)
}

fn api_signals_spare_the_jobs_of_others(node: &Node) -> Result<()> {
    node.import(&hello()?)?;
    let through = Through::start(node)?;
    let left = |running: Running| {
        running.interrupt()?;
        let output = running.end()?;
        ensure!(output.code == Some(130), "{output:?}");
        Ok(output)
    };

    // Whoever began it goes, and another waits; then that one goes, who did not begin it.
    let held = through.tap.hold(Method::APPLY, 1, Point::Before);
    let first = through.unpack()?;
    held.wait()?;
    let second = through.unpack()?;
    through.job("two wait", |job| job["waiters"] == 2)?;
    for (running, others) in [(first, 1), (second, 0)] {
        let output = left(running)?;
        ensure!(output.stderr.contains("goes on, for others"), "{output:?}");
        let job = through.job("one is gone", |job| job["waiters"] == others)?;
        ensure!(job["state"] == "running", "{job}");
    }
    held.release();
    eventually("the job ends", DEADLINE, || Ok(through.jobs()?.is_empty()))?;
    let report = through.unpack()?.report()?;
    ensure!(applied(&report) == 0, "{report}");

    // The only caller of a job cancels it when it leaves.
    node.ctr(&["images", "rm", "--sync", &hello()?.reference])?;
    node.import(&hello()?)?;
    let held = through.tap.hold(Method::APPLY, 1, Point::Before);
    let alone = through.unpack()?;
    held.wait()?;
    let output = left(alone)?;
    ensure!(output.stderr.contains("was cancelled"), "{output:?}");
    ensure!(through.jobs()?.is_empty());
    held.release();
    through.end()?;
    node.assert_nothing_left(ON)
}

fn api_socket_is_for_root_and_one_daemon(node: &Node) -> Result<()> {
    node.import(&hello()?)?;
    // Nobody serves yet.
    let nobody = node.resnap(&["jobs", "--json"])?.error()?;
    ensure!(nobody["kind"] == "Unavailable", "{nobody}");

    let through = Through::start(node)?;
    let socket = through.served.dir.join("api.sock");
    let mode = fs::metadata(&socket)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
    for service in ["", "resnap.v1.ResnapService"] {
        ensure!(health(&socket, service)? == ServingStatus::Serving);
    }

    // A second one finds either socket taken.
    let second = through.resnap(&["serve"])?;
    ensure!(second.code == Some(2), "{second:?}");
    ensure!(
        second.stderr.contains("another process serves"),
        "{second:?}"
    );
    let other = through.served.dir.join("other.sock");
    let second = through.resnap(&["serve", "--cri-socket", &other.to_string_lossy()])?;
    ensure!(second.code == Some(2), "{second:?}");
    ensure!(
        second.stderr.contains("another process serves"),
        "{second:?}"
    );
    ensure!(!other.exists(), "it left a socket");

    // It is not for other namespaces, whose images are unpacked all the same.
    let elsewhere = Node {
        containerd: Arc::clone(&node.containerd),
        namespace: unique("elsewhere"),
    };
    elsewhere.import(&hello()?)?;
    let resnap = |arguments: &[&str]| {
        let mut command = elsewhere.resnap_command()?;
        command
            .env("CONTAINERD_ADDRESS", through.tap.socket())
            .env("RESNAP_RUNTIME_DIR", &through.served.dir);
        run_to_end(command.args(arguments))
    };
    let error = resnap(&["jobs", "--json"])?.error()?;
    ensure!(error["kind"] == "FailedPrecondition", "{error}");
    resnap(&["unpack", "hello:1", "--snapshotter", ON])?.ok()?;
    elsewhere.assert_nothing_left(ON)?;
    ensure!(node.snapshots(ON)?.is_empty());
    through.end()
}

/// Returns the answer of gRPC's health service.
fn health(socket: &Path, service: &str) -> Result<ServingStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let path = PathBuf::from(socket);
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    runtime.block_on(async {
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }),
        );
        let answer = HealthClient::new(channel).check(request).await?;
        Ok(answer.into_inner().status())
    })
}

fn api_daemon_is_killed_and_the_next_goes_on(node: &Node) -> Result<()> {
    node.import(&hello()?)?;
    let mut through = Through::start(node)?;
    let held = through.tap.hold(Method::APPLY, 2, Point::During);
    let caller = through.unpack()?;
    held.wait()?;
    through.job("the job is the daemon's", |job| job["waiters"] == 1)?;
    through.served.kill()?;
    let error = caller.end()?.error()?;
    ensure!(error["kind"] == "Unavailable", "{error}");
    held.release();
    through.served = through.served.again(node, through.tap.socket())?;
    eventually("the next one answers", DEADLINE, || {
        Ok(through.resnap(&["jobs"])?.code == Some(0))
    })?;
    let report = through.unpack()?.report()?;
    ensure!(applied(&report) == 2, "{report}");
    // The one that was torn, and no other, twice.
    let count = through.tap.count(Method::APPLY);
    ensure!(count == 4, "{count}");
    node.assert_nothing_left(ON)?;
    let dir = through.served.dir.clone();
    through.end()?;
    let files = fs::read_dir(dir)?.map(|file| Ok(file?.file_name()));
    let files = files.collect::<Result<Vec<_>>>()?;
    ensure!(files == ["config.toml"], "{files:?} are left");
    Ok(())
}

fn api_daemon_stops_after_its_calls(node: &Node) -> Result<()> {
    node.import(&hello()?)?;
    let through = Through::start(node)?;
    let held = through.tap.hold(Method::APPLY, 2, Point::Before);
    let caller = through.unpack()?;
    held.wait()?;
    let socket = through.served.dir.join("api.sock");
    // The daemon does not wait for connections without calls.
    let _idle = std::os::unix::net::UnixStream::connect(&socket)?;
    let Through { tap, served, .. } = through;
    let stopping = std::thread::spawn(move || served.stop());
    // It accepts no new connections.
    eventually("it stops", DEADLINE, || {
        let connection = std::os::unix::net::UnixStream::connect(&socket);
        Ok(connection.is_err_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            )
        }))
    })?;
    ensure!(!stopping.is_finished(), "it does not wait for its calls");
    held.release();
    let report = caller.report()?;
    ensure!(applied(&report) == 3, "{report}");
    let released = Instant::now();
    stopping
        .join()
        .map_err(|_| anyhow!("stopping panicked"))??;
    let took = released.elapsed();
    ensure!(took < Duration::from_secs(5), "it took {took:?} to stop");
    ensure!(!socket.exists(), "its socket is left");
    node.assert_nothing_left(ON)?;
    tap.finish()
}
