// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A Linux kernel of its own for a test: that of Debian 13 in User-Mode Linux, which runs as a process, without
//! root and without virtualisation. It has dm-verity, loop devices, EROFS and overlayfs, which the machine's
//! kernel may lack.
//!
//! ```text
//! kernel      a process of this user, ends with the thread that started it
//! └ init      from <target>/integration/tools/uml/, the root of the guest, read-only
//!   └ script  in /work, which is a folder of the machine
//! ```

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::debian::{self, Suite, debs, run, unpack, write_program};

/// The kernel. Those up to 6.15 trace the guest's processes by ptrace, and cannot restore their registers on a
/// processor with AMX, as they keep fewer than the machine's kernel wants.
const KERNEL: [&str; 1] = ["user-mode-linux"];

/// The programs of the guest: `dmsetup` with its libraries, and a shell.
const GUEST: [&str; 8] = [
    "busybox-static",
    "dmsetup",
    "libc6",
    "libcap2",
    "libdevmapper1.02.1",
    "libpcre2-8-0",
    "libselinux1",
    "libudev1",
];

/// The first program of the guest. Its root is read-only, so that guests can share it.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir /dev/bin
/bin/busybox --install -s /dev/bin
export PATH=/dev/bin:/usr/sbin:/usr/bin DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -t hostfs none /control -o "$CONTROL"
mount -t hostfs none /work -o "$WORK"
modprobe -a loop dm-verity erofs overlay
cd /work
sh /control/script >/control/output 2>&1
echo $? >/control/code
sync
poweroff -f
"#;

/// The interval of polling.
const POLL: Duration = Duration::from_millis(20);

/// The output of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The exit code.
    pub code: i32,
    /// The output, of stdout and stderr.
    pub output: String,
}

/// Boots a kernel and runs the shell script in it, with `work` as the current folder. The programs are those of
/// busybox, and `dmsetup`.
///
/// # Errors
/// The kernel cannot be started, or the script does not end within `limit`. Nothing is left of it then.
pub fn run_script(work: &Path, script: &str, limit: Duration) -> Result<Finished> {
    let root = root()?;
    let control = tempfile::tempdir().context("make a folder for the guest")?;
    let console = control.path().join("console");
    fs::write(control.path().join("script"), script).context("write the guest's script")?;
    let work = fs::canonicalize(work).with_context(|| format!("find {work:?}"))?;
    for path in [&work, control.path(), root] {
        let is_plain = path
            .to_str()
            .is_some_and(|path| !path.contains([' ', ',', '"']));
        ensure!(
            is_plain,
            "{path:?} cannot be on the command line of a kernel"
        );
    }
    let log = File::create(&console).context("write the guest's console")?;
    let arguments = [
        "mem=512M".to_owned(),
        "root=/dev/root".to_owned(),
        "rootfstype=hostfs".to_owned(),
        format!("rootflags={}", root.display()),
        "ro".to_owned(),
        "init=/init".to_owned(),
        "seccomp=auto".to_owned(),
        "con=null".to_owned(),
        "con0=null,fd:1".to_owned(),
        format!("uml_dir={}", control.path().display()),
        // What the kernel does not know becomes the environment of init.
        format!("CONTROL={}", control.path().display()),
        format!("WORK={}", work.display()),
    ];
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(root.join("kernel"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start setpriv (package util-linux)")?;
    let ended = Kernel(child).wait(limit);
    let read = |name: &str| fs::read(control.path().join(name)).unwrap_or_default();
    let text = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
    match (ended, text("code").trim().parse()) {
        (Ok(()), Ok(code)) => Ok(Finished {
            code,
            output: text("output"),
        }),
        (ended, _) => {
            let (output, console) = (text("output"), text("console"));
            let why = ended
                .err()
                .unwrap_or_else(|| anyhow::anyhow!("it ended early"));
            bail!(
                "a guest: {why:#}\n--- the script wrote ---\n{output}\n--- console ---\n{console}"
            )
        }
    }
}

/// The process of a kernel. It leads the group of all processes of the guest.
struct Kernel(Child);

impl Kernel {
    fn wait(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self
                .0
                .try_wait()
                .context("wait for the guest's kernel")?
                .is_some()
            {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("it did not end in {limit:?}")
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It is a leader only once it runs. What is left of the guest ends with the kernel, too.
            if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Returns the root of guests, with the kernel; laid out once.
fn root() -> Result<&'static Path> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let root = debian::target_dir().join("tools/uml");
    lay_out(&root).with_context(|| format!("lay out the guest's root {root:?}"))?;
    Ok(ROOT.get_or_init(|| root))
}

fn lay_out(root: &Path) -> Result<()> {
    let _lock = debian::lock(&root.with_extension("lock"))?;
    let packages = [debs(&KERNEL, Suite::Forky)?, debs(&GUEST, Suite::Trixie)?].concat();
    debian::lay_out(root, &packages)?;
    write_program(&root.join("init"), INIT)?;
    // The program is not for the machine's libc, and a root that was copied names the one it was copied from.
    let stamp = root.join(".kernel");
    if fs::read_to_string(&stamp).is_ok_and(|path| Path::new(&path) == root) {
        return Ok(());
    }
    for dir in ["proc", "sys", "dev", "tmp", "control", "work"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("usr/lib/modules", "uml/modules"),
        ("usr/sbin/modprobe", "../bin/busybox"),
    ] {
        if !root.join(link).exists() {
            symlink(target, root.join(link)).with_context(|| format!("link {link}"))?;
        }
    }
    let kernel = root.join("kernel");
    fs::copy(root.join("usr/bin/linux.uml"), &kernel).context("copy the kernel")?;
    let tool = root.with_extension("patchelf");
    unpack(&debian::deb("patchelf", Suite::Bookworm)?, &tool)?;
    let libraries = debian::libraries(root);
    run(Command::new(tool.join("usr/bin/patchelf"))
        .arg("--set-interpreter")
        .arg(debian::loader(&libraries)?)
        .arg("--set-rpath")
        .arg(&libraries)
        .arg(&kernel))?;
    fs::write(&stamp, root.as_os_str().as_encoded_bytes()).context("write a stamp")
}
