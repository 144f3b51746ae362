// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! kubelet, which is moved by a drop-in of its unit.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::changes::Changes;
use super::files::{NodeFile, in_run};
use super::host::Host;
use super::record::Record;
use super::service;
use crate::arguments::{kubelet_value, last_value};

const UNIT: &str = "kubelet.service";
const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/10-resnap.conf";

/// The variable of the drop-in, with which units of kubelet end.
const VARIABLE: &str = "KUBELET_EXTRA_ARGS";

/// The flag in the drop-in, its name, and its value.
const FLAG: &str = "--container-runtime-endpoint=unix:///run/resnap/cri.sock";
const FLAG_NAME: &str = "--container-runtime-endpoint";
const ENDPOINT: &str = "unix:///run/resnap/cri.sock";

/// The field of kubelet's configuration file that the flag beats.
const FIELD: &str = "containerRuntimeEndpoint";

const RELOAD: [&str; 2] = ["systemctl", "daemon-reload"];

const RESTART: [&str; 3] = ["systemctl", "restart", UNIT];

/// The text for a node without the unit.
pub(super) const NOT_MOVED: &str = concat!(
    "kubelet was not moved: this node has no kubelet.service. When it has one, run this again. Where another ",
    "program is the kubelet (k3s, RKE2), give it --container-runtime-endpoint=unix:///run/resnap/cri.sock and restart ",
    "it: with k3s and RKE2 as a kubelet-arg, since their own flag of that name ends their containerd. Take that out ",
    "again before `resnap uninstall`"
);

/// The number of looks at the process of kubelet after a restart, which systemd does not wait for.
const LOOKS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);

/// The number of looks in a row after which kubelet runs.
const GOOD_LOOKS: u32 = 3;

/// The drop-in.
pub(super) fn drop_in() -> NodeFile {
    let text = include_str!("../../../../examples/systemd/10-resnap.conf");
    NodeFile::embedded(DROP_IN, text)
}

/// The unit of kubelet.
pub(super) struct Kubelet {
    uses_variable: bool,
    environment_files: Vec<PathBuf>,
    /// Whether the unit sets the variable to other flags.
    sets_flags: bool,
    /// The endpoints of its process, if it runs.
    endpoints: Option<Endpoints>,
}

/// The endpoints that a running kubelet was given.
struct Endpoints {
    flag: Option<String>,
    /// The configuration file that has one, and what it has.
    file: Option<(PathBuf, String)>,
}

impl Endpoints {
    fn read(host: &Host, arguments: &[u8]) -> Result<Self> {
        let arguments = String::from_utf8_lossy(arguments);
        let arguments: Vec<&str> = arguments.split('\0').collect();
        let mut file = None;
        if let Some(path) = last_value(&arguments, &["--config"]).map(PathBuf::from) {
            let text = host.read(&path)?.unwrap_or_default();
            let value = kubelet_value(&String::from_utf8_lossy(&text), FIELD);
            file = value.map(|value| (path, value));
        }
        Ok(Self {
            flag: last_value(&arguments, &[FLAG_NAME]).map(str::to_owned),
            file,
        })
    }

    /// Returns the one that counts.
    fn effective(&self) -> Option<&str> {
        let file = self.file.as_ref().map(|(_, endpoint)| endpoint);
        self.flag.as_ref().or(file).map(String::as_str)
    }
}

impl Kubelet {
    /// Finds the unit. Returns `None` if the node has none.
    pub(super) async fn find(host: &Host) -> Result<Option<Self>> {
        let unit = host.unit(UNIT, "LoadState,ExecStart,Environment,EnvironmentFiles");
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
            sets_flags: sets_other_flags(property("Environment")),
            endpoints: endpoints(host).await?,
        }))
    }

    pub(super) fn runs(&self) -> bool {
        self.endpoints.is_some()
    }

    fn endpoint(&self) -> Option<&str> {
        self.endpoints.as_ref()?.effective()
    }

    /// Returns what has to be done before the drop-in can move kubelet from the containerd at `address`.
    pub(super) fn cannot_be_moved(&self, host: &Host, address: &str) -> Option<String> {
        if !self.uses_variable {
            return Some(format!(
                "{UNIT} does not use {VARIABLE}, by which a drop-in sets kubelet's runtime. Put ${VARIABLE} at the \
                 end of its ExecStart= (`systemctl edit --full {UNIT}`), and run this again."
            ));
        }
        if let Some(endpoint) = self.endpoint()
            && ![socket(address), socket(ENDPOINT)].contains(&socket(endpoint))
        {
            return Some(format!(
                "kubelet uses {endpoint}, and resnap would be in front of {address}. If kubelet's is a containerd, name \
                 it by --address, and run this again."
            ));
        }
        if let Some((file, line)) = self.override_of_drop_in(host) {
            let file = file.display();
            return (!has_flag(&line)).then(|| {
                format!(
                    "{file} sets {VARIABLE}, which beats a drop-in of {UNIT}. Add {FLAG} to that line, and run this \
                     again before kubelet is restarted."
                )
            });
        }
        let file = self.environment_files.last();
        let file = file.map_or_else(
            || "/etc/default/kubelet".into(),
            |file| file.display().to_string(),
        );
        self.sets_flags.then(|| {
            format!(
                "{UNIT} sets {VARIABLE} (`systemctl cat {UNIT}`), and a drop-in would take the place of these flags. Set \
                 {VARIABLE} in {file} to them and {FLAG}, if that is an EnvironmentFile= of the unit, and run this again."
            )
        })
    }

    /// Returns what has to be done before kubelet can be moved back.
    pub(super) fn cannot_be_moved_back(&self, host: &Host, record: &Record) -> Option<String> {
        let by_file = self
            .override_of_drop_in(host)
            .filter(|(_, line)| has_flag(line));
        if let Some((file, _)) = by_file {
            let file = file.display();
            return Some(format!(
                "{file} keeps kubelet on resnap. Take {FLAG} out of it, and run this again."
            ));
        }
        let file = self.endpoints.as_ref().and_then(|own| own.file.as_ref());
        if let Some((file, endpoint)) = file
            && socket(endpoint) == socket(ENDPOINT)
        {
            let file = file.display();
            return Some(format!(
                "{file} keeps kubelet on resnap. Change {FIELD} there, and run this again."
            ));
        }
        let is_moved = self.endpoint().map(socket) == Some(socket(ENDPOINT))
            || matches!(host.read(DROP_IN.as_ref()), Ok(Some(_)));
        (is_moved && !record.has(DROP_IN) && service::is_removed(record)).then(|| {
            format!(
                "kubelet is on resnap, and not by `resnap install`. Take {FLAG} out (`systemctl cat {UNIT}` shows \
                 where it is), restart kubelet, and run this again."
            )
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
    let runs = will_restart(changes).await?;
    changes.write(drop_in)?;
    restart(changes, runs, true).await
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
    let runs = will_restart(changes).await?;
    changes.remove(DROP_IN.as_ref())?;
    restart(changes, runs, false).await
}

/// Has kubelet restarted when the changes are undone. Returns whether it runs. If not, it is not started: before
/// kubeadm has run, systemd starts it again and again, and the next time as its unit says then.
async fn will_restart(changes: &mut Changes<'_>) -> Result<bool> {
    let runs = endpoints(changes.host).await?.is_some();
    if runs {
        changes.on_undo(&RESTART)?;
    }
    changes.on_undo(&RELOAD)?;
    Ok(runs)
}

/// Restarts kubelet if it runs, and checks where it is connected then.
async fn restart(changes: &mut Changes<'_>, runs: bool, to_resnap: bool) -> Result<()> {
    changes.run(&RELOAD).await?;
    if !runs {
        return Ok(());
    }
    changes.run(&RESTART).await?;
    if changes.dry_run {
        return Ok(());
    }
    let mut good = 0;
    for _ in 0..LOOKS {
        // One that ends at once is not there at each look.
        good = match uses_resnap(changes.host).await? {
            Some(uses) if uses == to_resnap => good + 1,
            _ => 0,
        };
        if good == GOOD_LOOKS {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    if uses_resnap(changes.host).await?.is_none() {
        bail!("kubelet does not run after its restart: see `journalctl -u {UNIT}`");
    }
    match to_resnap {
        true => bail!("kubelet was restarted without {FLAG}: see `systemctl cat {UNIT}`"),
        false => bail!("kubelet was restarted with {FLAG} still: see `systemctl cat {UNIT}`"),
    }
}

/// Returns whether the running kubelet uses resnap. `None` if it does not run.
async fn uses_resnap(host: &Host) -> Result<Option<bool>> {
    let endpoints = endpoints(host).await?;
    Ok(endpoints.map(|endpoints| endpoints.effective().map(socket) == Some(socket(ENDPOINT))))
}

/// Returns the endpoints of the running kubelet. `None` if it does not run.
async fn endpoints(host: &Host) -> Result<Option<Endpoints>> {
    let unit = host.unit(UNIT, "MainPID").await?;
    let process = unit.get("MainPID").filter(|process| *process != "0");
    let Some(process) = process else {
        return Ok(None);
    };
    let arguments = host.read(format!("/proc/{process}/cmdline").as_ref())?;
    let arguments = arguments.map(|arguments| Endpoints::read(host, &arguments));
    arguments.transpose()
}

/// Returns whether a line of an environment file connects kubelet to resnap.
fn has_flag(line: &str) -> bool {
    let words = line.split(|char: char| char.is_whitespace() || "\"'".contains(char));
    let words: Vec<&str> = words
        .map(|word| word.trim_start_matches(&format!("{VARIABLE}=")))
        .collect();
    last_value(&words, &[FLAG_NAME]) == Some(ENDPOINT)
}

/// Returns whether the environment of a unit, as systemd shows it, has the variable with other flags than that of the
/// drop-in.
fn sets_other_flags(environment: &str) -> bool {
    let Some((_, value)) = environment.split_once(&format!("{VARIABLE}=")) else {
        return false;
    };
    let is_quote = |char: char| "\"'$".contains(char);
    let value = value.trim_start_matches(is_quote);
    let rest = value.strip_prefix(FLAG).unwrap_or(value);
    rest.trim_start_matches(|char: char| char.is_whitespace() || is_quote(char))
        .starts_with('-')
}

/// Returns the path of a socket in an endpoint, by one of its names.
fn socket(endpoint: &str) -> String {
    in_run(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_sets_the_flag() {
        let text = String::from_utf8(drop_in().bytes).unwrap();
        assert!(text.contains(&format!("Environment=\"{VARIABLE}={FLAG}\"")));
        assert_eq!(format!("{FLAG_NAME}={ENDPOINT}"), FLAG);
    }

    #[test]
    fn flags_of_the_unit_are_seen() {
        for (environment, sets) in [
            ("", false),
            ("A=b", false),
            (&format!("{VARIABLE}={FLAG}"), false),
            (&format!("A=b \"{VARIABLE}={FLAG}\" C=d"), false),
            (&format!("{VARIABLE}= A=b"), false),
            (&format!("\"{VARIABLE}=--node-ip=::1 --v=2\""), true),
            (&format!("{VARIABLE}=--node-ip=::1"), true),
            (&format!("\"{VARIABLE}={FLAG} --v=2\""), true),
            (&format!("{VARIABLE}={FLAG}.bak"), false),
        ] {
            assert_eq!(sets_other_flags(environment), sets, "{environment}");
        }
    }

    #[test]
    fn the_last_endpoint_counts() {
        for (line, has) in [
            (format!("{VARIABLE}=\"--v=2 {FLAG}\""), true),
            (format!("{VARIABLE}={FLAG}"), true),
            (format!("{VARIABLE}={FLAG}.bak"), false),
            (format!("{VARIABLE}='{FLAG} {FLAG_NAME}=unix:///a'"), false),
            (format!("{VARIABLE}='{FLAG_NAME} {ENDPOINT}'"), true),
        ] {
            assert_eq!(has_flag(&line), has, "{line}");
        }
        assert_eq!(socket("unix:///var/run/a.sock"), socket("/run/a.sock"));
    }
}
