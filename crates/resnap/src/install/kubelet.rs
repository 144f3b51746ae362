// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! kubelet, which is moved by a drop-in of its unit.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::changes::Changes;
use super::files::NodeFile;
use super::host::Host;
use super::record::Record;

const UNIT: &str = "kubelet.service";
const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/10-resnap.conf";

/// The variable of the drop-in, with which units of kubelet end.
const VARIABLE: &str = "KUBELET_EXTRA_ARGS";

/// The flag in the drop-in.
const FLAG: &str = "--container-runtime-endpoint=unix:///run/resnap/cri.sock";

const RELOAD: [&str; 2] = ["systemctl", "daemon-reload"];

const RESTART: [&str; 3] = ["systemctl", "restart", UNIT];

/// The number of looks at the process of kubelet after a restart, which systemd does not wait for.
const LOOKS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);

/// The drop-in.
pub(super) fn drop_in() -> NodeFile {
    let text = include_str!("../../../../examples/systemd/10-resnap.conf");
    NodeFile::embedded(DROP_IN, text)
}

/// The unit of kubelet.
pub(super) struct Kubelet {
    uses_variable: bool,
    environment_files: Vec<PathBuf>,
}

impl Kubelet {
    /// Finds the unit. Returns `None` if the node has none.
    pub(super) async fn find(host: &Host) -> Result<Option<Self>> {
        let unit = host.unit(UNIT, "LoadState,ExecStart,EnvironmentFiles");
        let unit = unit.await?;
        let property = |name: &str| unit.get(name).map_or("", String::as_str);
        if property("LoadState") != "loaded" {
            return Ok(None);
        }
        // `/etc/default/kubelet (ignore_errors=yes)`
        let files = property("EnvironmentFiles").lines();
        let files = files.filter_map(|line| line.split(" (").next());
        Ok(Some(Self {
            uses_variable: property("ExecStart").contains(VARIABLE),
            environment_files: files.map(PathBuf::from).collect(),
        }))
    }

    /// Returns what has to be done before the drop-in can move kubelet.
    pub(super) fn cannot_be_moved(&self, host: &Host) -> Option<String> {
        if !self.uses_variable {
            return Some(format!(
                "{UNIT} does not use {VARIABLE}, by which a drop-in sets kubelet's runtime. Put ${VARIABLE} at the \
                 end of its ExecStart= (`systemctl edit --full {UNIT}`), and run this again."
            ));
        }
        let (file, line) = self.override_of_drop_in(host)?;
        if line.contains(FLAG) {
            return None;
        }
        let file = file.display();
        Some(format!(
            "{file} sets {VARIABLE}, which beats a drop-in of {UNIT}. Add {FLAG} to that line, and run this again \
             before kubelet is restarted."
        ))
    }

    /// Returns what has to be done before kubelet can be moved back.
    pub(super) fn cannot_be_moved_back(&self, host: &Host) -> Option<String> {
        let (file, line) = self.override_of_drop_in(host)?;
        line.contains(FLAG).then(|| {
            let file = file.display();
            format!("{file} keeps kubelet on resnap. Take {FLAG} out of it, and run this again.")
        })
    }

    /// Returns the line of an environment file that beats the drop-in.
    fn override_of_drop_in(&self, host: &Host) -> Option<(&PathBuf, String)> {
        self.environment_files.iter().rev().find_map(|file| {
            // Those that cannot be read do not count for systemd either.
            let bytes = host.read(file).ok().flatten()?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines = text.lines().map(str::trim_start);
            let line = lines.rfind(|line| {
                let rest = line.strip_prefix(VARIABLE);
                rest.is_some_and(|rest| rest.trim_start().starts_with('='))
            })?;
            Some((file, line.to_owned()))
        })
    }
}

/// Connects kubelet to resnap, which has to answer already.
pub(super) async fn install(changes: &mut Changes<'_>, drop_in: &NodeFile) -> Result<()> {
    let is_moved = !changes.is_new(drop_in)?;
    if is_moved && uses_resnap(changes.host).await? != Some(false) {
        return Ok(());
    }
    let is_active = will_restart(changes).await?;
    changes.write(drop_in)?;
    restart(changes, is_active, true).await
}

/// Connects kubelet to containerd again, if the node still has it.
pub(super) async fn uninstall(
    changes: &mut Changes<'_>,
    record: &Record,
    kubelet: Option<&Kubelet>,
) -> Result<()> {
    if !record.has(DROP_IN) {
        return Ok(());
    }
    if kubelet.is_none() {
        return changes.remove(DROP_IN.as_ref());
    }
    let is_moved = changes.host.read(DROP_IN.as_ref())?.is_some();
    if !is_moved && uses_resnap(changes.host).await? != Some(true) {
        return Ok(());
    }
    let is_active = will_restart(changes).await?;
    changes.remove(DROP_IN.as_ref())?;
    restart(changes, is_active, false).await
}

/// Has kubelet restarted when the changes are undone. Returns whether it is active: if not, it is not started.
async fn will_restart(changes: &mut Changes<'_>) -> Result<bool> {
    let is_active = changes.host.is_active(UNIT).await?;
    if is_active {
        changes.on_undo(&RESTART)?;
    }
    changes.on_undo(&RELOAD)?;
    Ok(is_active)
}

/// Restarts kubelet if it is active, and checks where it is connected then.
async fn restart(changes: &mut Changes<'_>, is_active: bool, to_resnap: bool) -> Result<()> {
    changes.run(&RELOAD).await?;
    if is_active {
        changes.run(&RESTART).await?;
    }
    if changes.dry_run {
        return Ok(());
    }
    for _ in 0..LOOKS {
        let found = uses_resnap(changes.host).await?;
        if found.is_none_or(|uses| uses == to_resnap) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    match to_resnap {
        true => bail!("kubelet was restarted without {FLAG}: see `systemctl cat {UNIT}`"),
        false => bail!("kubelet was restarted with {FLAG} still: see `systemctl cat {UNIT}`"),
    }
}

/// Returns whether the running kubelet uses resnap. `None` if it does not run.
async fn uses_resnap(host: &Host) -> Result<Option<bool>> {
    let unit = host.unit(UNIT, "MainPID").await?;
    let process = unit.get("MainPID").filter(|process| *process != "0");
    let Some(process) = process else {
        return Ok(None);
    };
    let arguments = host.read(format!("/proc/{process}/cmdline").as_ref())?;
    let Some(arguments) = arguments else {
        return Ok(None);
    };
    let mut arguments = arguments.split(|byte| *byte == 0);
    Ok(Some(arguments.any(|argument| argument == FLAG.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_sets_the_flag() {
        let text = String::from_utf8(drop_in().bytes).unwrap();
        assert!(text.contains(&format!("Environment=\"{VARIABLE}={FLAG}\"")));
    }
}
