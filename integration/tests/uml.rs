// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Kernels of their own for tests, and what they do with images.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use resnap_integration::uml::run_script;

/// The time that a guest has, on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_script_runs_in_a_kernel_of_its_own() {
    let work = tempfile::tempdir().unwrap();
    fs::write(work.path().join("in"), "text").unwrap();
    let script = "uname -r; cat in; echo written >out; grep -w erofs /proc/filesystems; dmsetup targets; exit 3";
    let finished = run_script(work.path(), script, LIMIT).unwrap();
    assert_eq!(finished.code, 3, "{finished:?}");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(finished.output.lines().next(), Some(host.trim()));
    for part in ["text", "erofs", "verity"] {
        assert!(finished.output.contains(part), "{part}: {finished:?}");
    }
    assert_eq!(
        fs::read_to_string(work.path().join("out")).unwrap(),
        "written\n"
    );
}

#[test]
fn a_script_that_does_not_end_is_killed() {
    let work = tempfile::tempdir().unwrap();
    let script = "while :; do :; done";
    let error = run_script(work.path(), script, Duration::from_secs(10)).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("did not end in 10s"), "{text}");
    let deadline = Instant::now() + LIMIT;
    while is_running(work.path()) {
        assert!(Instant::now() < deadline, "processes of the guest are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns whether there are processes of a guest. All of them have its folder as an argument.
fn is_running(work: &Path) -> bool {
    let argument = format!("WORK={}", work.display());
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.any(|other| other == argument.as_bytes())
    })
}
