// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The credentials of pulls, which are in no log and in memory only as long as their pod is there.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::cri::Cri;
use resnap_integration::image::{HELLO_SAYS, hello};
use resnap_integration::registry::{CREDENTIALS, Registry};

use crate::missing::{NO_SIBLING, discarding, pushed};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    ErofsHandler: credentials_are_in_no_log_and_leave_memory_with_their_pod,
}

/// A level alone is for the crates of resnap; those of others are named.
const LOG: &str = "trace,h2=trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace";

fn credentials_are_in_no_log_and_leave_memory_with_their_pod(node: &Node) -> Result<()> {
    let scratch = node.containerd.scratch();
    let registry = scratch.join(unique("registry"));
    let registry = Registry::start_private(node.containerd.dist(), &registry)?;
    let image = pushed(node, &registry, &hello()?, "hello:1")?;
    let node = discarding(node, false)?;
    let dir = node.containerd.socket().with_file_name(unique("p"));
    fs::create_dir(&dir)?;
    let (config, log) = (dir.join("config.toml"), scratch.join(unique("log")));
    fs::write(&config, NO_SIBLING)?;
    let mut command = node.resnap_command()?;
    command.env("RESNAP_CONFIG", config).env("RESNAP_LOG", LOG);
    command.stderr(File::create(&log)?);
    command
        .arg("--address")
        .arg(node.containerd.socket())
        .arg("serve");
    let served = Served::begin(&mut command, &dir)?;
    eventually("the proxy serves", DEADLINE, || Ok(served.socket.exists()))?;
    let cri = Cri::connect(&served.socket, &node.containerd.scratch())?;
    let sandbox = cri.run_pod_sandbox("erofs", "a")?;
    cri.pull_image(&image.reference, Some(&sandbox), Some(CREDENTIALS))?;
    node.collect_garbage()?;
    let exit = cri.run(&sandbox, "a", &image.reference, &[])?;
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    ensure!(
        holds(served.process.id())?,
        "this test does not find what is there"
    );
    cri.remove_all()?;
    let are_gone = || {
        // The buffer of a connection keeps what it has received until as much has come again. That are
        // some minutes of a kubelet.
        for _ in 0..400 {
            cri.status()?;
        }
        Ok(!holds(served.process.id())?)
    };
    eventually("the credentials are gone", DEADLINE, are_gone)?;
    drop(cri);
    served.stop()?;
    let log = fs::read_to_string(log)?;
    ensure!(log.contains("TRACE"), "nothing was traced");
    for secret in secrets() {
        ensure!(!log.contains(&secret), "{secret} is in the log");
    }
    Ok(())
}

/// Returns the password, and the forms in which it is sent.
fn secrets() -> [String; 2] {
    // `printf user:PASSWORD | base64`
    let encoded = "dXNlcjpyZXNuYXAtbGl2ZS00NzExLW9ubHk=";
    [CREDENTIALS.1.to_owned(), encoded.to_owned()]
}

/// Returns whether the writable memory of a process holds the password.
fn holds(process: u32) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let mut memory = File::open(format!("/proc/{process}/mem"))?;
    let secrets = secrets();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let (start, end) = range.context("a line without a range")?;
        let start = u64::from_str_radix(start, 16)?;
        let size = u64::from_str_radix(end, 16)? - start;
        let mut bytes = vec![0; usize::try_from(size)?];
        memory.seek(SeekFrom::Start(start))?;
        // A mapping may go at any time.
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        let found = |secret: &String| {
            let secret = secret.as_bytes();
            bytes.windows(secret.len()).any(|bytes| bytes == secret)
        };
        if secrets.iter().any(found) {
            return Ok(true);
        }
    }
    Ok(false)
}
