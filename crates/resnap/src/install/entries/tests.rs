// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use resnap_core::SnapshotterInfo;
use resnap_platforms::Platform;

use super::layout::{RUNTIME, RUNTIME_BEFORE_2};
use super::*;
use crate::toml_table::at;

/// The output of containerd 2, shortened.
const DUMP: &str = r#"
version = 3
imports = []
[plugins."io.containerd.cri.v1.images".runtime_platforms]
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
snapshotter = ""
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
snapshotter = ""
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = ""
IoUid = 0
SystemdCgroup = true
"#;

/// The path of the options of its default handler.
const RUNC_OPTIONS: [&str; 6] = [
    "plugins",
    RUNTIME,
    "containerd",
    "runtimes",
    "runc",
    "options",
];

fn table(text: &str) -> Table {
    text.parse().unwrap()
}

fn handlers(texts: &[&str]) -> Vec<Handler> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn containerd(config: &str, version: (u32, u32)) -> Containerd {
    Containerd {
        program: PathBuf::from("containerd"),
        config: PathBuf::from(config),
        version,
        pid: 1,
        snapshotters: Vec::new(),
        differs: words(&["erofs", "walking"]),
    }
}

#[test]
fn a_new_handler_is_like_the_default_one() {
    let handlers = handlers(&["erofs=erofs", "kata=nydus"]);
    let entries = Layout::Since2.entries(&table(DUMP), &handlers, Some(3));
    let entries = toml::to_string(&entries.unwrap()).unwrap();
    let expected = r#"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.erofs]
runtime_type = "io.containerd.runc.v2"
snapshotter = "erofs"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.erofs.options]
SystemdCgroup = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
snapshotter = "nydus"
[plugins."io.containerd.cri.v1.images".runtime_platforms.erofs]
platform = "PLATFORM"
snapshotter = "erofs"
[plugins."io.containerd.cri.v1.images".runtime_platforms.kata]
platform = "PLATFORM"
snapshotter = "nydus"
"#;
    let expected = expected.replace("PLATFORM", &Platform::host().to_string());
    assert_eq!(table(&entries), table(&expected), "{entries}");
    // Files of version 2 have other names.
    let entries = Layout::Since2
        .entries(&table(DUMP), &handlers, Some(2))
        .unwrap();
    let path = [
        "plugins",
        RUNTIME_BEFORE_2,
        "containerd",
        "runtimes",
        "erofs",
    ];
    assert!(at(&entries, &path).is_some(), "{entries}");
}

#[test]
fn a_handler_keeps_the_snapshotter_that_it_has() {
    let mut dump = table(DUMP);
    let erofs = handlers(&["kata=erofs"]);
    let entries = Layout::Since2.entries(&dump, &erofs, Some(3)).unwrap();
    assert!(!Layout::Since2.has(&dump, &erofs[0]).unwrap());
    let path = [
        "plugins",
        RUNTIME,
        "containerd",
        "runtimes",
        "kata",
        "snapshotter",
    ];
    remove(&mut dump, &path);
    merge(&mut dump, entries);
    assert!(Layout::Since2.has(&dump, &erofs[0]).unwrap());
    let other = &handlers(&["kata=nydus"])[0];
    let error = Layout::Since2.has(&dump, other).unwrap_err().to_string();
    assert!(
        error.contains("has snapshotter \"erofs\" for handler \"kata\""),
        "{error}"
    );
}

#[test]
fn any_other_difference_is_refused() {
    let before = table(DUMP);
    let handlers = handlers(&["erofs=erofs"]);
    let added = Layout::Since2.entries(&before, &handlers, Some(3)).unwrap();
    let entries = Entries {
        file: NodeFile::generated("/etc/containerd/conf.d/resnap.toml".as_ref(), String::new()),
        containerd: containerd("/etc/containerd/config.toml", (2, 1)),
        before: before.clone(),
        handlers,
        differs: Some(words(&["erofs", "walking"])),
    };
    let mut after = before.clone();
    merge(&mut after, added);
    let error = entries.check(&after).unwrap_err().to_string();
    assert!(error.contains("order of its differs"), "{error}");
    insert(
        &mut after,
        &differ_order::PATH,
        words(&["erofs", "walking"]).into(),
    );
    insert(&mut after, &["imports"], Value::Array(vec!["a".into()]));
    entries.check(&after).unwrap();

    let error = entries.check(&before).unwrap_err().to_string();
    assert!(error.contains("\"erofs\" is not there"), "{error}");
    remove(
        &mut after,
        &[&RUNC_OPTIONS[..], &["SystemdCgroup"]].concat(),
    );
    let error = entries.check(&after).unwrap_err().to_string();
    assert!(error.contains("\"options\".\"SystemdCgroup\""), "{error}");
}

#[test]
fn a_file_is_added_only_where_it_is_merged() {
    let imported = |layout: Layout, version, main: &str| {
        layout.imported(
            &containerd("/etc/containerd/config.toml", version),
            &table(main),
        )
    };
    let absolute =
        "imports = [\"/etc/a.toml\", \"/etc/containerd/certs.d/*/*.toml\", \"/etc/b/*.toml\"]";
    for (layout, version, main, directory) in [
        (Layout::Since2, (2, 1), absolute, Some("/etc/b")),
        (
            Layout::Since2,
            (2, 1),
            "imports = [\"conf.d/*.toml\"]",
            Some("/etc/containerd/conf.d"),
        ),
        (Layout::Since2, (2, 1), "", None),
        (Layout::Since2, (2, 2), "", Some("/etc/containerd/conf.d")),
        (Layout::Since2, (2, 2), "imports = []", None),
        (Layout::Before2, (1, 7), absolute, None),
    ] {
        assert_eq!(
            imported(layout, version, main),
            directory.map(PathBuf::from),
            "{version:?} {main}"
        );
    }
}

#[test]
fn handlers_are_written_with_their_snapshotters() {
    for text in ["erofs", "=erofs", "erofs="] {
        text.parse::<Handler>().unwrap_err();
    }
}

#[test]
fn a_snapshotter_is_one_that_works() {
    let snapshotter = |name: &str, failure: Option<&str>| SnapshotterInfo {
        name: name.to_owned(),
        capabilities: Vec::new(),
        platforms: Vec::new(),
        root: None,
        failure: failure.map(str::to_owned),
    };
    let mut containerd = containerd("/etc/containerd/config.toml", (2, 1));
    containerd.snapshotters = vec![
        snapshotter("btrfs", Some("no btrfs")),
        snapshotter("erofs", None),
        snapshotter("overlayfs", None),
    ];
    let require = |text: &str| handlers(&[text])[0].require_snapshotter(&containerd);
    require("a=erofs").unwrap();
    let error = require("a=erofsx").unwrap_err().to_string();
    assert!(
        error.contains("no snapshotter erofsx; it has erofs, overlayfs"),
        "{error}"
    );
    let error = require("a=btrfs").unwrap_err().to_string();
    assert!(error.contains("did not load: no btrfs"), "{error}");
}

#[test]
fn the_order_of_differs_is_set_for_erofs_only() {
    let mut containerd = containerd("/etc/containerd/config.toml", (2, 1));
    let mut dump = table(DUMP);
    insert(&mut dump, &differ_order::PATH, words(&["walking"]).into());
    let order = |containerd: &Containerd, dump: &Table, text: &str| {
        order_of_differs(dump, containerd, &handlers(&[text]))
    };
    let ordered = words(&["erofs", "walking"]);
    assert_eq!(order(&containerd, &dump, "a=erofs"), Some(ordered.clone()));
    assert_eq!(order(&containerd, &dump, "a=native"), None);
    // containerd starts with no diff service if it lists a differ that does not work.
    containerd.differs = words(&["walking"]);
    assert_eq!(order(&containerd, &dump, "a=erofs"), None);
    containerd.differs = ordered.clone();
    remove(&mut dump, &differ_order::PATH);
    insert(&mut dump, &differ_order::PATH, ordered.into());
    assert_eq!(order(&containerd, &dump, "a=erofs"), None);
}

/// The lines that the example tells operators to add are those that `install` adds.
#[test]
fn the_example_has_the_same_lines() {
    let example = include_str!("../../../../../examples/crictl/README.md");
    let (_, lines) = example.split_once("```toml\n").unwrap();
    let (lines, _) = lines.split_once("```").unwrap();
    let mut dump = table(DUMP);
    remove(&mut dump, &RUNC_OPTIONS);
    let handlers = handlers(&["erofs=erofs"]);
    let mut entries = Layout::Since2.entries(&dump, &handlers, Some(3)).unwrap();
    insert(
        &mut entries,
        &differ_order::PATH,
        words(&["erofs", "walking"]).into(),
    );
    let host = Platform::host().to_string();
    assert_eq!(table(&lines.replace("linux/amd64", &host)), entries);
}
