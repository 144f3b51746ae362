// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ready-made images.

use anyhow::{Result, ensure};

use super::archive::cached;
use super::builder::ImageBuilder;
use super::built::Built;
use super::layer::Layer;
use super::payload::{MERGED, Payload};
use super::tar_entry::Entry;
use crate::tree::{Expected, Field};

/// The line that a container of [`web`] prints: a word from each of its layers.
pub const WEB_SAYS: &str = "debian bash perl python3.11 nginx: the page of the top layer";

/// The line that a container of [`hello`] prints.
pub const HELLO_SAYS: &str = "hello from layer 3";

/// The differences between any two unpacks of one of these images by containerd.
pub const ROOT_CLOCK: &[Expected] = &[Expected {
    path: ".",
    field: Field::Mtime,
    reason: "no snapshotter keeps the time that a layer states for the root",
}];

/// The most layers that containerd mounts in one overlay.
pub const MANY_MAX: usize = 127;

/// The packages of the layers of [`web`], from the lowest; the top layer is not from a package.
const WEB_LAYERS: [&[&str]; 5] = [
    &[
        "base-files",
        "libc6",
        "libgcc-s1",
        "libcrypt1",
        "zlib1g",
        "tzdata",
    ],
    &[
        "bash",
        "dash",
        "coreutils",
        "busybox",
        "grep",
        "sed",
        "libacl1",
        "libattr1",
        "libgmp10",
        "libpcre2-8-0",
        "libselinux1",
        "libtinfo6",
        "ncurses-base",
        "ncurses-term",
    ],
    &["perl-base", "perl-modules-5.36"],
    &[
        "python3.11-minimal",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
        "libexpat1",
    ],
    &["nginx", "nginx-common", "libssl3"],
];

/// The script of a container of [`web`]. Its first lines read a word from each layer.
const GREET: &str = r#"#!/bin/bash
set -eu
system=$(. /etc/os-release; echo "$ID")
shell=$(basename "$BASH")
perl=$(perl -MFile::Spec -MText::Wrap -e 'print((File::Spec->splitpath($^X))[2])')
python=$(python3.11 -c 'import json, os, sys; print(os.path.basename(json.loads(json.dumps(sys.executable))))')
server=$(nginx -v 2>&1 | sed 's/.*: \([a-z]*\).*/\1/')
page=$(sed -n 's/.*<h1>\(.*\)<\/h1>.*/\1/p' /var/www/html/index.html)
test ! -e /var/www/html/index.nginx-debian.html
test ! -e /usr/share/nginx/html
echo "$system $shell $perl $python $server: $page"
"#;

/// `docker.io/library/web:1`: six layers of real programs, with [`WEB_SAYS`] as its output.
pub fn web() -> Result<Built> {
    cached("web", |path| {
        ImageBuilder::new("docker.io/library/web:1")
            .layers(web_layers(WEB_LAYERS.len())?)
            .layer(top("the page of the top layer")?)
            .cmd(["/bin/sh", "-c", "exec /usr/local/bin/greet"])
            .env("LC_ALL", "C")
            .write(path)
    })
}

/// Two images, `left:1` and `right:1`, on the two lowest layers of [`web`].
pub fn shared_pair() -> Result<(Built, Built)> {
    let side = |name: &str| {
        cached(name, |path| {
            let side = Layer::of(&[
                Entry::dir("./"),
                Entry::dir("etc"),
                Entry::file("etc/side", format!("{name}\n")),
            ])?;
            ImageBuilder::new(&format!("docker.io/library/{name}:1"))
                .layers(web_layers(2)?)
                .layer(side)
                .cmd(["/bin/cat", "/etc/side"])
                .write(path)
        })
    };
    Ok((side("left")?, side("right")?))
}

/// `docker.io/library/hello:1`: three small layers, with [`HELLO_SAYS`] as its output.
///
/// Layer 2 holds a first text of the message, and a file that layer 3 deletes.
pub fn hello() -> Result<Built> {
    cached("hello", |path| {
        let second = [
            Entry::dir("./"),
            Entry::dir("etc"),
            Entry::file("etc/message", "hello from layer 2\n"),
            Entry::file("etc/only-in-layer-2", ""),
        ];
        let third = [
            Entry::dir("./"),
            Entry::dir("etc"),
            Entry::file("etc/message", format!("{HELLO_SAYS}\n")),
            Entry::whiteout("etc/only-in-layer-2"),
        ];
        ImageBuilder::new("docker.io/library/hello:1")
            .layer(busybox([])?)
            .layer(Layer::of(&second)?)
            .layer(Layer::of(&third)?)
            .cmd(["/bin/cat", "/etc/message"])
            .write(path)
    })
}

/// `docker.io/library/pause:1`: sleeps until SIGTERM or SIGINT, then ends at once with code 0.
pub fn pause() -> Result<Built> {
    cached("pause", |path| {
        // A process with PID 1 gets no default action for signals: without the trap it stays
        // until SIGKILL. `wait` is interrupted by a signal, a foreground sleep is not.
        let wait = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
        ImageBuilder::new("docker.io/library/pause:1")
            .layer(busybox([Entry::file("etc/hostname", "pause\n")])?)
            .cmd(["/bin/sh", "-c", wait])
            .write(path)
    })
}

/// `docker.io/library/many:N`: `n` layers with a file each, which its output counts.
pub fn many(n: usize) -> Result<Built> {
    ensure!(
        (1..=MANY_MAX).contains(&n),
        "an image of {n} layers: take 1 to {MANY_MAX}"
    );
    cached(&format!("many-{n}"), |path| {
        let mut image = ImageBuilder::new(&format!("docker.io/library/many:{n}"))
            .layer(busybox([
                Entry::dir("many"),
                Entry::file("many/001", "1\n"),
            ])?)
            .cmd(["/bin/sh", "-c", "set -- /many/*; echo $#"]);
        for index in 2..=n {
            let file = Entry::file(format!("many/{index:03}"), format!("{index}\n"));
            image = image.layer(Layer::of(&[Entry::dir("./"), Entry::dir("many"), file])?);
        }
        image.write(path)
    })
}

/// Returns the lowest `count` layers of [`web`].
pub(super) fn web_layers(count: usize) -> Result<Vec<Layer>> {
    let payload = |(index, packages): (usize, &&[&str])| {
        let payload = Payload::debian(packages)?;
        match index {
            0 => payload.with(system()),
            1 => payload.with([Entry::symlink("usr/bin/sh", "dash")]),
            _ => payload,
        }
        .layer()
    };
    WEB_LAYERS
        .iter()
        .take(count)
        .enumerate()
        .map(payload)
        .collect()
}

/// Returns the entries that a container needs and no package contains: the links of the merged `/usr`,
/// mount points and the two databases of names.
fn system() -> Vec<Entry> {
    let merged = MERGED.map(|dir| Entry::symlink(dir, format!("usr/{dir}")));
    let dirs = [
        "./", "dev", "etc", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var",
    ]
    .map(Entry::dir);
    let rest = [
        Entry::dir("root").mode(0o700),
        Entry::dir("tmp").mode(0o1777),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n",
        ),
        Entry::file("etc/group", "root:x:0:\nwww-data:x:33:\n"),
    ];
    dirs.into_iter().chain(merged).chain(rest).collect()
}

/// `docker.io/library/beside-hello:1`: a file `etc/side` on the lowest layer of [`hello`].
pub fn beside_hello() -> Result<Built> {
    cached("beside-hello", |path| {
        let side = Layer::of(&[
            Entry::dir("./"),
            Entry::dir("etc"),
            Entry::file("etc/side", "beside hello\n"),
        ])?;
        ImageBuilder::new("docker.io/library/beside-hello:1")
            .layer(busybox([])?)
            .layer(side)
            .cmd(["/bin/cat", "/etc/side"])
            .write(path)
    })
}

/// Returns the statically linked busybox with the links that its commands are found by.
fn busybox<const N: usize>(more: [Entry; N]) -> Result<Layer> {
    busybox_payload(more)?.layer()
}

/// Returns the same as a tree.
pub(super) fn busybox_payload<const N: usize>(more: [Entry; N]) -> Result<Payload> {
    let links = [
        "sh", "cat", "ls", "sleep", "echo", "true", "wc", "stat", "id", "mount",
    ];
    Ok(Payload::debian(&["busybox-static"])?
        .with(system())
        .with(links.map(|name| Entry::symlink(format!("usr/bin/{name}"), "busybox")))
        .with(more))
}

/// Returns the layer on top of [`web`]: a page and a program added, a file replaced, a file deleted and
/// a directory deleted.
fn top(heading: &str) -> Result<Layer> {
    let page = format!("<!doctype html>\n<title>web</title>\n<h1>{heading}</h1>\n");
    // Every directory is stated, the root too: one that is not gets the time of its unpacking,
    // and from mkfs.erofs the mode 0777.
    let dirs = [
        "./",
        "etc",
        "usr",
        "usr/local",
        "usr/local/bin",
        "usr/share",
        "usr/share/doc",
        "usr/share/doc/nginx",
        "usr/share/nginx",
        "var",
    ];
    let rest = [
        Entry::dir("var/www").owner(33, 33),
        Entry::dir("var/www/html").owner(33, 33),
        Entry::opaque("var/www/html"),
        Entry::file("var/www/html/index.html", page).owner(33, 33),
        Entry::file("usr/local/bin/greet", GREET).mode(0o755),
        Entry::file("etc/motd", "changed by the top layer\n"),
        Entry::whiteout("usr/share/nginx/html"),
        Entry::whiteout("usr/share/doc/nginx/copyright"),
    ];
    Layer::of(&[&dirs.map(Entry::dir)[..], &rest].concat())
}
