// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use super::*;

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

fn table(text: &str) -> Table {
    text.parse().unwrap()
}

fn handlers(texts: &[&str]) -> Vec<Handler> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn containerd(config: &str, version: (u32, u32)) -> Containerd {
    Containerd {
        program: PathBuf::from("containerd"),
        config: PathBuf::from(config),
        version,
        pid: 1,
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
    };
    let mut after = before.clone();
    merge(&mut after, added);
    insert(&mut after, &["imports"], Value::Array(vec!["a".into()]));
    entries.check(&after).unwrap();

    let error = entries.check(&before).unwrap_err().to_string();
    assert!(error.contains("\"erofs\" is not there"), "{error}");
    let cgroup = [
        "plugins",
        RUNTIME,
        "containerd",
        "runtimes",
        "runc",
        "options",
        "SystemdCgroup",
    ];
    remove(&mut after, &cgroup);
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
