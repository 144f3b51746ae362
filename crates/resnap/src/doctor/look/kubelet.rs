// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! kubelet's endpoint of the CRI and its deadline: by the arguments of the process, which override its file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::arguments::kubelet_value as value;
use crate::doctor::process::Process;

/// The endpoint and the deadline of a kubelet that is told neither (Kubernetes
/// `pkg/kubelet/apis/config/v1beta1/defaults.go`).
const DEFAULT_ENDPOINT: &str = "unix:///run/containerd/containerd.sock";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A kubelet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kubelet {
    pub(crate) is_running: bool,
    /// The path of the socket.
    pub(crate) endpoint: PathBuf,
    pub(crate) timeout: Duration,
}

impl Kubelet {
    /// Looks for the kubelet with this root directory; `None` if there is none.
    ///
    /// # Errors
    /// Its file cannot be read or is not understood.
    pub(crate) fn look(root: &Path) -> io::Result<Option<Self>> {
        let running = Process::of_host("kubelet")?;
        let mut running = running.into_iter();
        let process = running.find(|process| {
            let own = process
                .argument(&["--root-dir"])
                .unwrap_or("/var/lib/kubelet");
            Path::new(own) == root
        });
        let argument = |name: &str| {
            let process = process.as_ref();
            process.and_then(|process| process.argument(&[name]))
        };
        let path = argument("--config").map_or_else(|| root.join("config.yaml"), PathBuf::from);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match process {
                None => return Ok(None),
                Some(_) => String::new(),
            },
            Err(error) => {
                let text = format!("read {}: {error}", path.display());
                return Err(io::Error::new(error.kind(), text));
            }
        };
        let endpoint = argument("--container-runtime-endpoint").map(str::to_owned);
        let endpoint = endpoint.or_else(|| value(&text, "containerRuntimeEndpoint"));
        let endpoint = endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let timeout = argument("--runtime-request-timeout").map(str::to_owned);
        let timeout = match timeout.or_else(|| value(&text, "runtimeRequestTimeout")) {
            None => DEFAULT_TIMEOUT,
            Some(text) => duration(&text).ok_or_else(|| {
                io::Error::other(format!(
                    "kubelet's runtimeRequestTimeout {text:?} is not understood"
                ))
            })?,
        };
        Ok(Some(Self {
            is_running: process.is_some(),
            endpoint: endpoint.trim_start_matches("unix://").into(),
            timeout: match timeout.is_zero() {
                true => DEFAULT_TIMEOUT,
                false => timeout,
            },
        }))
    }
}

/// Returns the text of a file. Others than regular ones may block, or never end.
fn read(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other("it is no regular file of at most 1 MiB"));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Parses a duration as Go writes it, such as `2m0s`.
fn duration(text: &str) -> Option<Duration> {
    match text {
        "0" => Some(Duration::ZERO),
        text => humantime::parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn values_are_read_in_yaml_and_json() {
        let yaml = "kind: KubeletConfiguration\n\
            containerRuntimeEndpoint: \"unix:///run/a.sock\" # ours\n\
            memory:\n  runtimeRequestTimeout: 1s\nruntimeRequestTimeout: 2m0s\nempty: \"\"\n";
        let json = r#"{ "containerRuntimeEndpoint": "unix:///run/a.sock", "runtimeRequestTimeout": "2m0s" }"#;
        for text in [yaml, json] {
            let value = |key| value(text, key);
            assert_eq!(
                value("containerRuntimeEndpoint").unwrap(),
                "unix:///run/a.sock"
            );
            assert_eq!(value("runtimeRequestTimeout").unwrap(), "2m0s");
            assert_eq!(value("empty"), None);
        }
        assert_eq!(duration("2m0s"), Some(DEFAULT_TIMEOUT));
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!(duration("soon"), None);
    }

    #[test]
    fn a_kubelet_that_does_not_run_is_known_by_its_file() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Kubelet::look(root.path()).unwrap(), None);
        let path = root.path().join("config.yaml");
        fs::write(&path, "runtimeRequestTimeout: 0s\n").unwrap();
        let kubelet = Kubelet::look(root.path()).unwrap().unwrap();
        assert!(!kubelet.is_running);
        assert_eq!(
            kubelet.endpoint,
            Path::new("/run/containerd/containerd.sock")
        );
        assert_eq!(kubelet.timeout, DEFAULT_TIMEOUT);
        fs::write(&path, "runtimeRequestTimeout: soon\n").unwrap();
        Kubelet::look(root.path()).unwrap_err();
    }

    #[test]
    fn only_small_regular_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.yaml");
        let assert_refused = || {
            let error = Kubelet::look(root.path()).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
            fs::remove_file(&path).unwrap();
        };
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, Mode::RUSR, 0).unwrap();
        assert_refused();
        symlink("/dev/zero", &path).unwrap();
        assert_refused();
        fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert_refused();
        fs::write(root.path().join("file"), "runtimeRequestTimeout: 3s\n").unwrap();
        symlink("file", &path).unwrap();
        let kubelet = Kubelet::look(root.path()).unwrap().unwrap();
        assert_eq!(kubelet.timeout, Duration::from_secs(3));
    }
}
