// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::*;

/// The root of a snapshotter, with the snapshots 1 to 3 of overlayfs and 4 of erofs.
fn root() -> TempDir {
    let root = TempDir::new().unwrap();
    for number in 1..=4 {
        let snapshot = root.path().join(format!("snapshots/{number}"));
        fs::create_dir_all(snapshot.join("fs")).unwrap();
        fs::create_dir(snapshot.join("work")).unwrap();
    }
    fs::write(root.path().join("snapshots/4/.erofslayer"), "").unwrap();
    root
}

fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.to_vec(),
    }
}

fn found(root: &Path, mount: Mount, preparation: Preparation) -> Result<Target, Error> {
    let facts = SnapshotFacts {
        root,
        namespace: XattrNamespace::Trusted,
        preparation,
    };
    find(&[mount], facts)
}

fn form(target: &Target) -> LayerForm {
    let form = target.form(Format::Tar, false, ErofsMode::default());
    form.unwrap()
}

const OWN: Preparation = Preparation::Since(UNIX_EPOCH);

#[test]
fn an_overlay_with_an_upper_directory_alone_is_not_the_lowest_layer() {
    let root = root();
    let path = |name: &str| root.path().join("snapshots").join(name);
    let upper = format!("upperdir={}", path("2/fs").display());
    let lower = format!("lowerdir={}", path("1/fs").display());
    let work = format!("workdir={}", path("2/work").display());
    let rw = "rw".to_owned();
    let backend = Preparation::ByBackend(std::process::id());
    for preparation in [OWN, backend] {
        let overlay = |options: &[String]| {
            found(
                root.path(),
                mount("overlay", "overlay", options),
                preparation,
            )
        };
        let target = overlay(&[rw.clone(), upper.clone()]).unwrap();
        assert_eq!(
            target,
            Target::Upper {
                directory: path("2/fs"),
                lower: Vec::new(),
                is_lowest: false
            }
        );
        assert_eq!(form(&target), LayerForm::Tree(WhiteoutMode::Upper));

        let target = overlay(&[work.clone(), upper.clone(), lower.clone()]).unwrap();
        let Target::Upper {
            lower, is_lowest, ..
        } = target
        else {
            panic!("{target:?}");
        };
        assert_eq!((lower, is_lowest), (vec![path("1/fs")], false));
        for other in [
            // No form of any containerd.
            vec![upper.clone(), work.clone()],
            vec![rw.clone()],
            vec![rw.clone(), upper.clone(), "metacopy=on".to_owned()],
            // Snapshots for EROFS images.
            vec![rw.clone(), upper.replace("/2/", "/4/")],
            // The snapshot itself.
            vec![rw.clone(), upper.replace("/2/fs", "/2")],
            vec![rw.clone(), "upperdir=/".to_owned()],
        ] {
            let target = overlay(&other);
            assert!(matches!(target, Err(Error::Unsupported(_))), "{other:?}");
        }
        let full = path("3/fs/file");
        fs::write(&full, "").unwrap();
        assert!(overlay(&[rw.clone(), upper.replace("/2/", "/3/")]).is_err());
    }
}

#[test]
fn a_bind_mount_of_the_backend_may_be_of_any_layer_of_erofs() {
    let root = root();
    let options = ["rw".to_owned(), "rbind".to_owned()];
    let bind = |number: u32, preparation| {
        let source = root.path().join(format!("snapshots/{number}/fs"));
        let mount = mount("bind", &source.to_string_lossy(), &options);
        form(&found(root.path(), mount, preparation).unwrap())
    };
    let backend = Preparation::ByBackend(std::process::id());
    let image = |is_lowest| LayerForm::Image {
        is_lowest,
        has_tree: false,
        mode: ErofsMode::default(),
    };
    assert_eq!(bind(4, OWN), image(true));
    assert_eq!(bind(4, backend), image(false));
    for preparation in [OWN, backend] {
        let lowest = LayerForm::Tree(WhiteoutMode::Base);
        assert_eq!(bind(1, preparation), lowest);
    }
}

#[test]
fn a_snapshot_must_be_new_or_the_one_that_the_backend_sees() {
    let root = root();
    let source = root.path().join("snapshots/1/fs");
    let options = ["rw".to_owned(), "rbind".to_owned()];
    let found = |preparation| {
        let mount = mount("bind", &source.to_string_lossy(), &options);
        found(root.path(), mount, preparation).is_ok()
    };
    let later = SystemTime::now() + Duration::from_secs(60);
    assert!(!found(Preparation::Since(later)));
    assert!(found(Preparation::ByBackend(std::process::id())));
    assert!(!found(Preparation::ByBackend(u32::MAX)));
}

#[test]
fn a_snapshot_that_cannot_be_looked_at_is_of_no_form() {
    let root = root();
    let snapshot = |number: u32| root.path().join(format!("snapshots/{number}"));
    let bound = mount(
        "bind",
        &snapshot(1).join("fs").to_string_lossy(),
        &["rw".to_owned(), "rbind".to_owned()],
    );
    let upper = format!("upperdir={}", snapshot(1).join("fs").display());
    let lower = format!("lowerdir={}", snapshot(2).join("fs").display());
    let work = format!("workdir={}", snapshot(1).join("work").display());
    let over = mount("overlay", "overlay", &[upper.clone(), lower, work]);
    let alone = mount("overlay", "overlay", &[upper]);
    for mount in [bound, over, alone] {
        assert!(found(root.path(), mount.clone(), OWN).is_ok());
        // Its target cannot be found out.
        let marker = snapshot(1).join(".erofslayer");
        std::os::unix::fs::symlink(".erofslayer", &marker).unwrap();
        let target = found(root.path(), mount, OWN);
        assert!(matches!(target, Err(Error::Unsupported(_))), "{target:?}");
        fs::remove_file(&marker).unwrap();
    }
}
