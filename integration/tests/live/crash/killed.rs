// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! SIGKILL.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::tap::Method;
use resnap_integration::tap::Point::During;

use super::{Setup, start, until_said, wait_for_exit};
use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    Containerd: crash_of_one_process_and_the_other_goes_on,
}

fn crash_of_one_process_and_the_other_goes_on(node: &Node) -> Result<()> {
    let setup = Setup::new(node)?;
    let held = setup.tap.hold(Method::APPLY, 2, During);
    let mut first = start(&mut setup.tapped("native")?)?;
    held.wait()?;
    let other = setup.node.containerd.tap()?;
    let image = &setup.image.reference;
    let mut second = setup
        .resnap(&["unpack", "--snapshotter", "native", image])?
        .env("CONTAINERD_ADDRESS", other.socket())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = second.stderr.as_mut().context("no stderr")?;
    until_said(stderr, &format!("waiting for process {}", first.id()))?;
    ensure!(other.count(Method::PREPARE) == 0, "it does not wait");
    first.kill()?;
    ensure!(first.wait()?.signal() == Some(9));
    ensure!(wait_for_exit(&mut second)?.success());
    // Every layer was written once, save the one that was torn.
    let applies = [&setup.tap, &other].map(|tap| tap.count(Method::APPLY));
    ensure!(applies == [2, 2], "{applies:?}");
    setup.is_whole("native")?;
    other.finish()?;
    drop(held);
    setup.tap.finish()
}
