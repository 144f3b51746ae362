// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The names of images: set, kept and removed.

use std::fs;

use crate::store::{Store, archive, blob, damage, failed, image, layout, ok, says};

#[test]
fn an_image_stays_until_the_next_of_its_name_is_ready() {
    let store = Store::new();
    let old = image(&store.beside("old.tar"), "old", 2);
    let new = image(&store.beside("new.tar"), "new", 3);
    let path = store.beside("layout");
    let name = format!("oci:{}", path.display());
    layout(&old, &path);
    ok(store.unpack(&name));
    layout(&new, &path);
    for broken in [&new.layers[2].digest, &new.config, &new.manifest] {
        damage(&blob(&path, broken));
        failed(store.unpack(&name));
        assert_eq!(store.manifest(&name), old.manifest, "{broken}");
        store.is_ready(&name);
        assert_eq!(store.images(), [&*name]);
    }
    layout(&new, &path);
    ok(store.unpack(&name));
    assert_eq!(store.manifest(&name), new.manifest);
    store.is_ready(&name);
    store.has_only(3);
    assert!(
        !blob(&store.root(), &old.manifest).exists(),
        "the old one is collected"
    );
}

#[test]
fn commands_that_read_create_nothing() {
    let store = Store::new();
    let built = image(&store.beside("image.tar"), "a", 1);
    let (name, root) = (archive(&built), store.root());
    let check = |arguments: &[&str]| {
        let error = failed(store.resnap(arguments));
        says(&error, &[root.to_str().unwrap(), "name that of a store"]);
    };
    for exists in [false, true] {
        for arguments in [
            &["images"][..],
            &["check", &name],
            &["verify", "--snapshotter", "erofs", &name],
            &["leases"],
            &["leases", "--sweep"],
            &["snapshotters"],
            &["remove", &name],
            &["unpack", "docker.io/library/small:1"],
        ] {
            check(arguments);
            assert_eq!(root.exists(), exists, "{arguments:?}");
        }
        if exists {
            assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
            break;
        }
        failed(store.unpack("oci:/nowhere"));
        assert!(!root.exists(), "nor does an image that is not there");
        fs::create_dir(&root).unwrap();
    }
}

#[test]
fn images_are_removed_with_what_only_they_have() {
    let store = Store::new();
    let one = archive(&image(&store.beside("one.tar"), "same", 2));
    let two = archive(&image(&store.beside("two.tar"), "same", 3));
    for name in [&one, &two] {
        ok(store.unpack(name));
    }
    let removed = ok(store.resnap(&["remove", "--json", &two]));
    let removed: serde_json::Value = serde_json::from_str(&removed).unwrap();
    assert_eq!(removed, serde_json::json!([{"image": two}]));
    assert_eq!(store.images(), [&*one]);
    store.is_ready(&one);
    store.has_only(2);
    let error = failed(store.resnap(&["remove", &one, &two]));
    says(&error, &[&two, "`resnap images` lists what is there"]);
    assert_eq!(store.images(), [&*one], "all or none are removed");
    says(&ok(store.resnap(&["remove", &one])), &[&one, "is removed"]);
    store.has_only(0);
    assert_eq!(
        fs::read_dir(store.root().join("blobs/sha256"))
            .unwrap()
            .count(),
        0
    );

    let mut of_containerd = store.resnap(&[]);
    let program = of_containerd.get_program().to_owned();
    of_containerd = std::process::Command::new(program);
    of_containerd.env("RESNAP_CONFIG", store.beside("config.toml"));
    of_containerd.args(["remove", &one]);
    says(&failed(of_containerd), &["crictl rmi"]);
}

#[test]
fn errors_say_what_to_do() {
    let store = Store::new();
    let built = image(&store.beside("image.tar"), "a", 1);
    let (text, cut, empty) = (
        store.beside("text"),
        store.beside("cut"),
        store.beside("empty"),
    );
    fs::write(&text, "no archive").unwrap();
    let bytes = fs::read(&built.archive).unwrap();
    fs::write(&cut, &bytes[..600]).unwrap();
    fs::create_dir(&empty).unwrap();
    let named = |transport: &str, path: &std::path::Path| format!("{transport}:{}", path.display());
    let no_archive = ["or is cut short", "next: oci: takes"];
    for (name, says_so) in [
        (
            named("oci", &store.beside("nowhere")),
            &["No such file", "next: check the path"][..],
        ),
        (named("oci-archive", &text), &no_archive),
        (named("oci-archive", &cut), &no_archive),
        (
            named("docker-archive", &built.archive),
            &["`docker save`", "next: oci: takes"],
        ),
        (named("oci", &empty), &["no index.json", "next: oci: takes"]),
        (
            format!("{}:9", archive(&built)),
            &["has no image 9; there are: "],
        ),
        ("docker://".to_owned(), &["next: name it as docker://HOST"]),
        (
            "docker://localhost:1/web:1".to_owned(),
            &["refused", "next: see that the registry answers"],
        ),
    ] {
        let error = failed(store.unpack(&name));
        let (_, place) = name.split_once(':').unwrap();
        says(&error, &[place.trim_end_matches(":9")]);
        says(&error, says_so);
        assert!(!store.root().exists(), "{name}: a store was created");
    }
    ok(store.unpack(&archive(&built)));
    for (arguments, step) in [
        (
            ["unpack", "-s", "other", &archive(&built)],
            "next: take --snapshotter erofs",
        ),
        (
            ["check", "-s", "erofs", "web"],
            "docker-archive:FILE or docker://REFERENCE",
        ),
    ] {
        says(&failed(store.resnap(&arguments)), &[step]);
    }
}
