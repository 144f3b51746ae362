// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Kernels of their own for tests, and what they do with images.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use resnap_erofs::{ErofsReader, Memory, NoLower, Writer, joined_size};
use resnap_integration::debian::output;
use resnap_integration::image::tar_entry::{self, Entry};
use resnap_integration::image::{HELLO_SAYS, digest, hello, noise};
use resnap_integration::uml::run_script;
use resnap_layer::Layer;
use resnap_verity::{Appended, BlockSize, Work, append};

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

/// Bytes of noise, which span many blocks and end within one.
const NOISE: usize = 3_000_001;

/// Returns a layer with a file of noise.
fn layer() -> Vec<u8> {
    let entries = [
        Entry::dir("dir").mode(0o750).owner(1000, 1001),
        Entry::file("dir/noise", noise(1, NOISE)),
        Entry::hardlink("link", "dir/noise"),
        Entry::file("small", "text\n"),
        Entry::symlink("symlink", "small"),
        Entry::file("attributes", "x").xattr("user.key", "value"),
        Entry::file("last", noise(2, 700)),
    ];
    tar_entry::pack(&entries).unwrap()
}

/// Prints all that a container could see of the layer.
const SHOW: &str = r#"cd /tmp/mnt && find . | sort | while read -r path; do
    stat -c '%n %f %u:%g %Y %h' "$path"
    if [ -L "$path" ]; then readlink "$path"
    elif [ -f "$path" ]; then sha256sum <"$path" || echo not read
    fi
done"#;

/// Writes a layer as an image, or as an index of its tar, to `path`.
fn write(tar: &[u8], is_index: bool, path: &Path) -> (File, u64) {
    let file = File::options();
    let file = file
        .clone()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    let mut writer = Writer::new(file.unwrap(), Box::new(Memory::new(1 << 20))).unwrap();
    if is_index {
        writer = writer.index();
    }
    let mut layer = Layer::new(tar, Default::default());
    writer.add(&mut layer).unwrap();
    let (file, summary) = writer.finish(&mut NoLower, [7; 16]).unwrap();
    (file, summary.size)
}

/// Writes a layer as an image, or as an index before its tar, with a tree, to `path`.
fn write_with_tree(tar: &[u8], is_index: bool, path: &Path) -> (BlockSize, u64, Appended) {
    let (file, mut size) = write(tar, is_index, path);
    let mut block = BlockSize::B4096;
    if is_index {
        file.write_all_at(tar, size).unwrap();
        (block, size) = (BlockSize::B512, joined_size(size, tar.len() as u64));
        file.set_len(size).unwrap();
    }
    let appended = append(&file, size, block, [8; 16], None, Work::new(&|| Ok(()))).unwrap();
    (block, size, appended)
}

/// Returns the commands that mount an image in /work with dm-verity at /tmp/mnt.
fn mount(name: &str, block: BlockSize, size: u64, appended: &Appended) -> String {
    let bytes = block.bytes();
    let (sectors, blocks) = (size / 512, size / bytes);
    // The tree starts in the block after the superblock's.
    let tree = appended.hash_offset / bytes + 1;
    let root = appended.root_hash;
    let salt = "00".repeat(32);
    format!(
        "mkdir -p /tmp/mnt && device=$(losetup -f) && losetup -r $device {name} &&
dmsetup create {name} --readonly --table \"0 {sectors} verity 1 $device $device \\
{bytes} {bytes} {blocks} {tree} sha256 {root} {salt}\" &&
mount -t erofs -o ro /dev/mapper/{name} /tmp/mnt"
    )
}

/// Returns what [`SHOW`] prints of the layer, with another line for the data of `dir/noise` if that is not read.
fn shown(noise_line: Option<&str>) -> String {
    let sum = |data: &[u8]| format!("{}  -", digest(data).trim_start_matches("sha256:"));
    let noise_line = noise_line.map_or_else(|| sum(&noise(1, NOISE)), str::to_owned);
    let lines = [
        // What no layer states is of 1970.
        ". 41ed 0:0 0 3".to_owned(),
        "./attributes 81a4 0:0 1704067200 1".to_owned(),
        sum(b"x"),
        "./dir 41e8 1000:1001 1704067200 2".to_owned(),
        "./dir/noise 81a4 0:0 1704067200 2".to_owned(),
        noise_line.clone(),
        "./last 81a4 0:0 1704067200 1".to_owned(),
        sum(&noise(2, 700)),
        "./link 81a4 0:0 1704067200 2".to_owned(),
        noise_line,
        "./small 81a4 0:0 1704067200 1".to_owned(),
        sum(b"text\n"),
        "./symlink a1ff 0:0 1704067200 1".to_owned(),
        "small".to_owned(),
    ];
    lines.join("\n")
}

/// Flips a bit in the middle of a file's data.
fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let image = ErofsReader::open(file.try_clone().unwrap()).unwrap();
    let node = image.lookup(b"dir/noise").unwrap().unwrap();
    let at = image.position(&node).unwrap() + NOISE as u64 / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn layers_behind_verity_are_read_and_a_flipped_bit_is_found() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let tar = layer();
    let mut script = String::new();
    let mut expected = String::new();
    for (name, is_index) in [("full", false), ("index", true)] {
        let (block, size, appended) = write_with_tree(&tar, is_index, &at(name));
        let (flipped, other) = (format!("{name}-flipped"), format!("{name}-other"));
        for copy in [&flipped, &other] {
            fs::copy(at(name), at(copy)).unwrap();
        }
        flip(&at(&flipped));
        let mut wrong = appended;
        wrong.root_hash.0[0] ^= 1;
        for (name, appended, shown) in [
            (name, &appended, shown(None)),
            (&flipped, &appended, shown(Some("not read"))),
            (&other, &wrong, "not mounted".to_owned()),
        ] {
            let mount = mount(name, block, size, appended);
            script += &format!(
                "echo == {name}
if {mount}; then ({SHOW}) && umount /tmp/mnt; else echo not mounted; fi
dmsetup status {name} | cut -d' ' -f-4
dmsetup remove {name}\n"
            );
            // Newer kernels add the blocks that were corrected by another code, of which there is none here.
            // Valid, or corrupted.
            let state = if shown == self::shown(None) { "V" } else { "C" };
            expected += &format!("== {name}\n{shown}\n0 {} verity {state}\n", size / 512);
        }
    }
    // The reasons are in other words on other kernels.
    let finished = run_script(work.path(), &format!("exec 2>/dev/null\n{script}"), LIMIT).unwrap();
    assert_eq!(finished.output, expected);
}

#[test]
fn an_index_is_read_with_its_tar_as_a_device() {
    let work = tempfile::tempdir().unwrap();
    let tar = layer();
    write(&tar, true, &work.path().join("index"));
    fs::write(work.path().join("tar"), &tar).unwrap();
    let script = format!(
        "exec 2>/dev/null
mkdir /tmp/mnt
losetup -r /dev/loop0 index && losetup -r /dev/loop1 tar
mount -t erofs -o ro,device=/dev/loop1 /dev/loop0 /tmp/mnt && {SHOW}"
    );
    let finished = run_script(work.path(), &script, LIMIT).unwrap();
    assert_eq!(finished.output.trim_end(), shown(None));
}

/// The recipe of `examples/micro-vm`.
const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/micro-vm");

#[test]
fn a_micro_vm_runs_a_program_of_an_image_and_finds_a_changed_byte() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let image = hello().unwrap();
    let test = std::env::current_exe().unwrap();
    let programs = test.ancestors().nth(2).unwrap();
    let search = std::env::var("PATH").unwrap();
    let mut make = Command::new(format!("{RECIPE}/make-disk.sh"));
    make.arg(format!("oci-archive:{}", image.archive.display()))
        .arg(at("disk"))
        .env("PATH", format!("{}:{search}", programs.display()))
        .env("RESNAP_CONFIG", at("config.toml"));
    fs::write(at("config.toml"), "").unwrap();
    output(&mut make).unwrap();
    fs::copy(format!("{RECIPE}/mount-root.sh"), at("mount-root.sh")).unwrap();

    let mut bytes = fs::read(at("disk")).unwrap();
    let said = HELLO_SAYS.as_bytes();
    let position = bytes.windows(said.len()).position(|window| window == said);
    bytes[position.unwrap()] ^= 1;
    fs::write(at("changed"), bytes).unwrap();
    let script = "exec 2>&1; mkdir /tmp/root
for disk in disk changed; do
    device=$(losetup -f) && losetup -r $device $disk
    sh mount-root.sh $device disk.table /tmp/root && chroot /tmp/root /bin/cat /etc/message
    umount /tmp/root && dmsetup remove root
done";
    let finished = run_script(work.path(), script, LIMIT).unwrap();
    let lines: Vec<_> = finished.output.lines().collect();
    assert_eq!(lines.first(), Some(&HELLO_SAYS), "{finished:?}");
    assert_eq!(lines.len(), 2, "{finished:?}");
    assert!(lines[1].ends_with("Input/output error"), "{finished:?}");
    assert_eq!(
        finished.output.matches(HELLO_SAYS).count(),
        1,
        "{finished:?}"
    );
}
