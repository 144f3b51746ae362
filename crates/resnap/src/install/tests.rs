// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::fs;
use std::path::Path;

use super::*;
use node::*;

mod node;

#[test]
fn it_installs_once_updates_and_removes_all() {
    let node = Node::new();
    let before = node.files();
    let (ran, outcome) = node.run(true, None);
    outcome.unwrap();
    let first = [RELOAD, ENABLE, ASK, RELOAD, RESTART_KUBELET];
    assert_eq!(ran, first);
    let program = node.dir.path().join("usr/local/bin/resnap");
    assert_eq!(fs::read_to_string(&program).unwrap(), "the first");

    let (ran, outcome) = node.run(true, None);
    assert!(matches!(outcome.unwrap(), Outcome::Done { steps, .. } if steps.is_empty()));
    assert!(ran.is_empty(), "{ran:?}");

    node.write("opt/resnap", "the second");
    let (ran, outcome) = node.run(true, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, ENABLE, RESTART, ASK]);
    assert_eq!(fs::read_to_string(&program).unwrap(), "the second");

    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);
    node.write("opt/resnap", "the first");
    assert_eq!(node.files(), before);
    let (ran, outcome) = node.run(false, None);
    assert!(matches!(outcome.unwrap(), Outcome::Done { steps, .. } if steps.is_empty()));
    assert!(ran.is_empty(), "{ran:?}");
}

#[test]
fn a_failure_leaves_the_node_as_it_was() {
    let node = Node::new();
    let before = node.files();
    for step in [RELOAD, ENABLE, ASK, RESTART_KUBELET] {
        // Reloads and restarts fail while they are undone, too, and the files are right nevertheless.
        let (ran, outcome) = node.run(true, Some(step));
        let error = format!("{:#}", outcome.err().unwrap());
        assert!(error.contains(&format!("`{step}` failed")), "{error}");
        assert_eq!(node.files(), before, "{step}");
        assert!(!node.systemd.state().is_installed, "{ran:?}");
    }
    // kubelet goes back before its runtime is stopped.
    let (ran, _) = node.run(true, Some(RESTART_KUBELET));
    let last: Vec<&str> = ran.iter().skip(5).map(String::as_str).collect();
    assert_eq!(last, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);

    node.run(true, None).1.unwrap();
    let installed = node.files();
    for step in [RESTART_KUBELET, DISABLE, RELOAD] {
        let (_, outcome) = node.run(false, Some(step));
        outcome.err().unwrap();
        assert_eq!(node.files(), installed, "{step}");
        assert!(node.systemd.state().is_installed, "{step}");
    }
}

#[test]
fn an_update_that_fails_leaves_the_version_that_was_there() {
    let node = Node::new();
    node.run(true, None).1.unwrap();
    node.write("opt/resnap", "the second");
    let before = node.files();
    let (ran, outcome) = node.run(true, Some(ASK));
    outcome.err().unwrap();
    assert_eq!(ran, [RELOAD, ENABLE, RESTART, ASK, RELOAD, RESTART]);
    assert_eq!(node.files(), before);
}

#[test]
fn a_signal_undoes_what_was_done() {
    let node = Node::new();
    let before = node.files();
    let stop = CancellationToken::new();
    node.systemd.state().stop = Some(stop.clone());
    let (ran, outcome) = node.run_until(true, Some(ASK), stop);
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(error.contains("stopped by a signal"), "{error}");
    assert_eq!(
        ran,
        [
            RELOAD,
            ENABLE,
            ASK,
            "systemctl disable --now resnap.socket resnap.service",
            RELOAD
        ]
    );
    assert_eq!(node.files(), before);
}

#[test]
fn files_of_others_are_kept() {
    let node = Node::new();
    node.write("etc/systemd/system/resnap.service", "theirs");
    let before = node.files();
    let (ran, outcome) = node.run(true, None);
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(
        error.contains("resnap.service\" is there already"),
        "{error}"
    );
    assert!(ran.is_empty(), "{ran:?}");
    assert_eq!(node.files(), before);

    // A program that cannot be run.
    let node = Node::new();
    node.write("usr/local/bin/resnap", "the first");
    node.set_mode("usr/local/bin/resnap", 0o644);
    let error = format!("{:#}", node.run(true, None).1.err().unwrap());
    assert!(error.contains("is not executable"), "{error}");
}

#[test]
fn files_that_the_operator_put_there_stay_as_they_are() {
    let node = Node::new();
    let files = service::files(&node.facts()).unwrap();
    for (file, mode) in files.iter().zip([0o700, 0o640, 0o600]) {
        let name = file.path.strip_prefix("/").unwrap().to_str().unwrap();
        node.write(name, &String::from_utf8_lossy(&file.bytes));
        node.set_mode(name, mode);
    }
    let before = (node.files(), node.modes());
    node.run(true, None).1.unwrap();
    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, RESTART_KUBELET, DISABLE, RELOAD]);
    assert_eq!((node.files(), node.modes()), before);

    // They were in use, and stay so.
    node.systemd.state().is_installed = true;
    node.run(true, None).1.unwrap();
    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, RESTART_KUBELET, RELOAD]);
    assert_eq!((node.files(), node.modes()), before);
    node.systemd.state().is_installed = false;

    // kubelet would have no runtime.
    let drop_in = kubelet::drop_in();
    node.write(DROP_IN, &String::from_utf8_lossy(&drop_in.bytes));
    node.run(true, None).1.unwrap();
    let text = by_hand(node.run(false, None).1);
    assert!(text.contains("and not by `resnap install`"), "{text}");
    fs::remove_file(node.dir.path().join(DROP_IN)).unwrap();
    node.systemd.state().start_kubelet();
    node.run(false, None).1.unwrap();
}

#[test]
fn kubelet_that_does_not_run_yet_is_moved_when_it_starts() {
    let node = Node::new();
    let before = node.files();
    node.systemd.state().kubelet = "0";
    let (ran, outcome) = node.run(true, None);
    assert!(matches!(outcome.unwrap(), Outcome::Done { left: None, .. }));
    assert_eq!(ran, [RELOAD, ENABLE, ASK, RELOAD]);
    assert!(node.dir.path().join(DROP_IN).exists());
    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    assert_eq!(ran, [RELOAD, DISABLE, RELOAD]);
    assert_eq!(node.files(), before);
}

#[test]
fn diff_plugins_keep_the_service() {
    let node = Node::new();
    node.run(true, None).1.unwrap();
    let run = Run {
        host: &node.host,
        dry_run: false,
        stop: CancellationToken::new(),
    };
    node.systemd.state().ran.clear();
    for plugin in ["/run/resnap/diff.sock", "/var/run/resnap/diff.sock"] {
        let text = by_hand(block_on(run.uninstall(&[plugin.to_owned()])));
        assert!(
            text.contains(&format!("has a diff plugin at {plugin}")),
            "{text}"
        );
    }
    node.write("etc/systemd/system/resnap-diff.socket", "");
    let text = by_hand(block_on(run.uninstall(&[])));
    assert!(text.contains("resnap-diff.socket is there"), "{text}");
    assert!(node.systemd.state().ran.is_empty());
}

#[test]
fn a_dry_run_shows_texts_and_differences() {
    let node = Node::new();
    let run = Run {
        host: &node.host,
        dry_run: true,
        stop: CancellationToken::new(),
    };
    let shown = |path: &str| {
        let outcome = block_on(run.install(&node.facts(), None)).unwrap();
        let Outcome::Done { steps, .. } = outcome else {
            panic!("something is to be done by hand");
        };
        let mut found = steps.into_iter().filter_map(|step| match step {
            Step::Write {
                path: written,
                text,
                difference,
            } => written.ends_with(path).then_some((text, difference)),
            _ => None,
        });
        found.next()
    };
    let before = node.files();
    let (text, _) = shown("resnap.service").unwrap();
    assert!(
        text.unwrap()
            .contains("ExecStart=/usr/local/bin/resnap serve")
    );
    assert_eq!(shown("bin/resnap"), Some((None, None)));
    assert_eq!(node.files(), before);

    node.run(true, None).1.unwrap();
    assert_eq!(shown("resnap.service"), None);
    let unit = "etc/systemd/system/resnap.service";
    let text = fs::read_to_string(node.dir.path().join(unit)).unwrap();
    node.write(unit, &text.replace("WatchdogSec=30", "WatchdogSec=5"));
    node.write("opt/resnap", "the second");
    let (text, difference) = shown("resnap.service").unwrap();
    assert_eq!(text, None);
    let difference = difference.unwrap();
    assert!(
        difference.contains("\n-WatchdogSec=5\n+WatchdogSec=30\n"),
        "{difference}"
    );
    let another = Some("another program\n".to_owned());
    assert_eq!(shown("bin/resnap"), Some((None, another)));
}

#[test]
fn a_dry_run_that_fails_runs_nothing() {
    let node = Node::new();
    node.run(true, None).1.unwrap();
    let program = node.dir.path().join("usr/local/bin/resnap");
    fs::remove_file(&program).unwrap();
    fs::create_dir(&program).unwrap();
    let before = node.files();
    let run = Run {
        host: &node.host,
        dry_run: true,
        stop: CancellationToken::new(),
    };
    node.systemd.state().ran.clear();
    assert!(block_on(run.uninstall(&[])).is_err());
    assert!(node.systemd.state().ran.is_empty());
    assert_eq!(node.files(), before);
}

#[test]
fn a_service_that_others_enabled_keeps_its_program() {
    let node = Node::new();
    let files = service::files(&node.facts()).unwrap();
    for file in files.iter().filter(|file| file.mode == 0o644) {
        let name = file.path.strip_prefix("/").unwrap().to_str().unwrap();
        node.write(name, &String::from_utf8_lossy(&file.bytes));
    }
    let before = node.files();
    node.systemd.state().is_installed = true;
    node.run(true, None).1.unwrap();
    let (ran, outcome) = node.run(false, None);
    let text = by_hand(outcome);
    assert!(text.contains("systemctl disable --now"), "{text}");
    assert!(ran.is_empty(), "{ran:?}");
    node.systemd.state().is_installed = false;
    node.run(false, None).1.unwrap();
    assert_eq!(node.files(), before);
}

#[test]
fn links_of_the_operator_are_kept() {
    let node = Node::new();
    let link = node.dir.path().join("usr/local/bin/resnap");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    let (ran, outcome) = node.run(true, None);
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(error.contains("is a link to a file"), "{error}");
    assert!(ran.is_empty() && link.is_symlink(), "{ran:?}");
}

#[test]
fn all_files_of_entries_are_removed() {
    let node = Node::new();
    let before = node.files();
    let mut files = ["/etc/a/resnap.toml", "/etc/b/resnap.toml"]
        .map(|path| files::NodeFile::embedded(path, ""));
    let record = Record::default();
    let record = record.with(&node.host, files.iter_mut()).unwrap();
    let mut changes = Changes::new(&node.host, false, CancellationToken::new());
    changes.write(&record.file().unwrap()).unwrap();
    for file in &files {
        changes.write(file).unwrap();
    }
    drop(changes);
    let (ran, outcome) = node.run(false, None);
    outcome.unwrap();
    let restart = "systemctl restart containerd.service";
    assert_eq!(ran.iter().filter(|line| *line == restart).count(), 1);
    assert_eq!(node.files(), before);
}

#[test]
fn a_variable_that_beats_the_drop_in_is_told() {
    let node = Node::new();
    node.write(
        "etc/default/kubelet",
        "# a comment\nKUBELET_EXTRA_ARGS=\"--v=2\"\n",
    );
    let text = by_hand(node.run(true, None).1);
    assert!(
        text.contains("/etc/default/kubelet sets KUBELET_EXTRA_ARGS"),
        "{text}"
    );

    let flag = "--container-runtime-endpoint=unix:///run/resnap/cri.sock";
    node.write(
        "etc/default/kubelet",
        &format!("KUBELET_EXTRA_ARGS=\"--v=2 {flag}\"\n"),
    );
    node.run(true, None).1.unwrap();
    // kubelet would have no runtime.
    let text = by_hand(node.run(false, None).1);
    assert!(text.contains(&format!("Take {flag} out")), "{text}");
    assert!(node.dir.path().join(DROP_IN).exists());
    node.write("etc/default/kubelet", "KUBELET_EXTRA_ARGS=\"--v=2\"\n");
    node.run(false, None).1.unwrap();
    assert!(!node.dir.path().join(DROP_IN).exists());
}

#[test]
fn an_interrupted_run_is_removed() {
    let node = Node::new();
    let before = node.files();
    let mut files = service::files(&node.facts()).unwrap();
    let record = Record::default()
        .with(&node.host, files.iter_mut())
        .unwrap();
    let mut changes = Changes::new(&node.host, false, CancellationToken::new());
    changes.write(&record.file().unwrap()).unwrap();
    changes.write(&files[0]).unwrap();
    drop(changes);
    assert_ne!(node.files(), before);
    node.run(false, None).1.unwrap();
    assert_eq!(node.files(), before);
    assert!(!Path::new(&node.dir.path().join("var/lib/resnap")).exists());
}
