// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The program and its units.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::changes::Changes;
use super::clients;
use super::files::{NodeFile, PROGRAM, UNITS, in_run};
use super::host::Host;
use super::record::Record;

const SERVICE: &str = "resnap.service";
const SOCKET: &str = "resnap.socket";

/// The socket of the diff plugin, which operators install themselves.
const DIFF_SOCKET: &str = "/etc/systemd/system/resnap-diff.socket";

const UNIT: &str = include_str!("../../../../examples/systemd/resnap.service");
const SOCKET_UNIT: &str = include_str!("../../../../examples/systemd/resnap.socket");

/// The drop-in with the paths of a node that has others than the unit.
const DROP_IN: &str = "/etc/systemd/system/resnap.service.d/10-node.conf";

/// The runtime directory of the unit, which outlives the service.
pub(super) const RUNTIME_DIRECTORY: &str = "/run/resnap";

/// The socket of the unit, as containerd's for `--address`.
const CRI: &str = "/run/resnap/cri.sock";

const RELOAD: [&str; 2] = ["systemctl", "daemon-reload"];
const RESTART: [&str; 3] = ["systemctl", "restart", SERVICE];

/// The facts about the node that the files depend on.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The program that is installed, as this process finds it.
    pub(crate) program: PathBuf,
    /// containerd's socket.
    pub(crate) containerd: String,
    /// containerd's socket, if it is not where the service looks for it.
    pub(crate) address: Option<String>,
    /// The roots of the snapshotters that resnap writes.
    pub(crate) roots: Vec<PathBuf>,
}

/// Returns the files of the service.
pub(super) fn files(facts: &Facts) -> Result<Vec<NodeFile>> {
    let program = &facts.program;
    let program = fs::read(program).with_context(|| format!("read {program:?}"))?;
    let mut files = vec![
        NodeFile::program(program),
        NodeFile::embedded(&format!("{UNITS}/{SERVICE}"), UNIT),
        NodeFile::embedded(&format!("{UNITS}/{SOCKET}"), SOCKET_UNIT),
    ];
    if let Some(text) = drop_in(facts)? {
        files.push(NodeFile::generated(DROP_IN.as_ref(), text));
    }
    Ok(files)
}

/// Returns the drop-in, if the unit does not have all paths of the node.
fn drop_in(facts: &Facts) -> Result<Option<String>> {
    let in_unit = |root: &Path| {
        let path = root.display();
        let line = format!("ReadWritePaths=-{path}");
        UNIT.lines().any(|there| there == line)
    };
    let roots = facts.roots.iter().filter(|root| !in_unit(root));
    let roots = roots.map(|root| value(&root.to_string_lossy()));
    let roots: Vec<String> = roots.collect::<Result<_>>()?;
    let mut unit = String::new();
    let mut service = String::new();
    if let Some(address) = &facts.address {
        writeln!(
            service,
            "Environment=\"CONTAINERD_ADDRESS={}\"",
            value(address)?
        )?;
    }
    for root in &roots {
        writeln!(unit, "RequiresMountsFor={root}")?;
        writeln!(service, "ReadWritePaths=-{root}")?;
    }
    if service.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "# The paths of this node. Written by `resnap install`.\n[Unit]\n{unit}\n[Service]\n{service}"
    )))
}

/// Returns a path as a value in a unit.
fn value(path: &str) -> Result<String> {
    let is_plain =
        |char: char| !char.is_whitespace() && !char.is_control() && !"\"'\\$".contains(char);
    if !path.chars().all(is_plain) {
        bail!("{path:?} has characters that a unit of systemd cannot have in a path");
    }
    Ok(path.replace('%', "%%"))
}

/// Returns the units that are not enabled.
pub(super) async fn disabled(host: &Host) -> Result<Vec<&'static str>> {
    let mut disabled = Vec::new();
    for unit in [SOCKET, SERVICE] {
        if !host.is_enabled(unit).await? {
            disabled.push(unit);
        }
    }
    Ok(disabled)
}

/// Returns whether `uninstall` ends the service, or takes its program away.
pub(super) fn is_removed(record: &Record) -> bool {
    record.has(PROGRAM) || record.has_enabled(SERVICE)
}

/// Returns what has to be done before the service can be removed, if something still uses it.
pub(super) async fn is_used(host: &Host) -> Result<Option<String>> {
    let unit = host.unit(SERVICE, "MainPID").await?;
    let process = unit.get("MainPID").map_or("0", String::as_str);
    Ok(clients::are_connected(host, process, CRI)?.then(|| {
        format!(
            "Something is connected to {CRI}, such as a kubelet without a kubelet.service (k3s, RKE2). Give that its \
             --container-runtime-endpoint of before, restart it, and run this again."
        )
    }))
}

/// Returns what has to be done before the service can be removed, where it is not `install` that began it, or for
/// containerd's sake. `plugins` are the sockets of its diff plugins, if it is known.
pub(super) async fn cannot_be_removed(
    host: &Host,
    record: &Record,
    plugins: &[String],
) -> Result<Option<String>> {
    if !record.has_enabled(SERVICE) && host.is_enabled(SERVICE).await? {
        return Ok(Some(format!(
            "{SERVICE} is enabled, and not by `resnap install`, whose program it runs. Disable it (`systemctl disable \
             --now {SOCKET} {SERVICE}`), and run this again."
        )));
    }
    let own = plugins
        .iter()
        .find(|plugin| Path::new(&in_run(plugin)).starts_with(RUNTIME_DIRECTORY));
    if let Some(own) = own {
        return Ok(Some(format!(
            "containerd's configuration has a diff plugin at {own}, which is resnap: without it, no image could be \
             pulled. Take those lines out, restart containerd, remove {DIFF_SOCKET} if it is there \
             (`systemctl disable --now` first), and run this again."
        )));
    }
    let has_unit = host.read(DIFF_SOCKET.as_ref())?.is_some();
    Ok(has_unit.then(|| {
        format!(
            "{DIFF_SOCKET} is there, by which containerd reaches resnap's diff plugin. Take the lines of the plugin \
             out of containerd's configuration, restart containerd, disable and remove that unit, and run this again."
        )
    }))
}

/// Installs and starts the service. It answers then.
pub(super) async fn install(changes: &mut Changes<'_>, files: &[NodeFile]) -> Result<()> {
    let host = changes.host;
    let was_active = host.is_active(SERVICE).await?;
    let had_socket = host.is_active(SOCKET).await?;
    let mut news = Vec::new();
    for unit in [SOCKET, SERVICE] {
        if !host.is_enabled(unit).await? || !host.is_active(unit).await? {
            news.push(unit);
        }
    }
    let mut changed = Vec::new();
    for file in files {
        if changes.is_new(file)? {
            changed.push(file);
        }
    }
    if changed.is_empty() && news.is_empty() {
        return Ok(());
    }
    if was_active {
        changes.on_undo(&RESTART)?;
    }
    if !changed.is_empty() {
        changes.on_undo(&RELOAD)?;
        for file in &changed {
            changes.write(file)?;
        }
        changes.run(&RELOAD).await?;
    }
    let is_stopped =
        was_active && (!had_socket || changed.iter().any(|file| file.path.ends_with(SOCKET)));
    if is_stopped {
        // A socket is not started while its service runs.
        changes.run(&["systemctl", "stop", SERVICE, SOCKET]).await?;
    }
    if !news.is_empty() {
        changes.on_undo(&[&["systemctl", "disable", "--now"], news.as_slice()].concat())?;
    }
    changes
        .run(&["systemctl", "enable", "--now", SOCKET, SERVICE])
        .await?;
    if was_active && !is_stopped {
        changes.run(&RESTART).await?;
    }
    changes
        .run(&[PROGRAM, "--address", CRI, "snapshotters"])
        .await
}

/// Stops the service and removes its files. kubelet does not use it any more.
pub(super) async fn uninstall(changes: &mut Changes<'_>, record: &Record) -> Result<()> {
    let host = changes.host;
    let path = |unit: &str| Path::new(UNITS).join(unit);
    let mut units = Vec::new();
    for unit in [SOCKET, SERVICE] {
        if record.has_enabled(unit) && host.read(&path(unit))?.is_some() {
            units.push(unit);
        }
    }
    if !units.is_empty() {
        changes.on_undo(&[&["systemctl", "enable", "--now"], units.as_slice()].concat())?;
        changes
            .run(&[&["systemctl", "disable", "--now"], units.as_slice()].concat())
            .await?;
    }
    changes.on_undo(&RELOAD)?;
    let own = [PROGRAM.into(), path(SERVICE), path(SOCKET), DROP_IN.into()];
    for file in own.iter().filter(|file| record.has(file)) {
        changes.remove(file)?;
    }
    changes.run(&RELOAD).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(address: Option<&str>, roots: &[&str]) -> Facts {
        Facts {
            program: PathBuf::new(),
            containerd: "/run/containerd/containerd.sock".to_owned(),
            address: address.map(str::to_owned),
            roots: roots.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn a_node_with_the_paths_of_the_unit_needs_no_drop_in() {
        let root = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs";
        assert_eq!(drop_in(&facts(None, &[root])).unwrap(), None);
    }

    #[test]
    fn other_paths_are_in_a_drop_in() {
        let facts = facts(Some("/run/k3s/50%.sock"), &["/data/overlayfs"]);
        let text = drop_in(&facts).unwrap().unwrap();
        for line in [
            "RequiresMountsFor=/data/overlayfs\n",
            "ReadWritePaths=-/data/overlayfs\n",
            "Environment=\"CONTAINERD_ADDRESS=/run/k3s/50%%.sock\"\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn paths_that_would_be_other_lines_are_refused() {
        for root in ["/a b", "/a\nExecStart=/bin/sh", "/a\"", "/a\\", "/$A"] {
            let error = drop_in(&facts(None, &[root])).unwrap_err().to_string();
            assert!(error.contains("characters"), "{error}");
        }
    }
}
