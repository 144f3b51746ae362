// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A blocking client of the CRI, as small as kubelet's part in the tests.
//!
//! It brings a runtime of its own, so it is not for use inside another one:
//! async code calls it in `spawn_blocking` or in a thread.

mod connection;
mod log;
mod messages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use prost::Message;

use connection::Connection;
use log::read_log;
use messages as m;

/// The time that the CRI has to answer after its start, and a container to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// A connection to the CRI of one containerd.
#[derive(Debug)]
pub struct Cri {
    connection: Connection,
    logs: PathBuf,
}

/// A pod's sandbox, on the network of the node.
#[derive(Debug, Clone)]
pub struct Sandbox {
    id: String,
    config: m::SandboxConfig,
}

impl Sandbox {
    /// Returns the CRI's ID, which is also the container's in the namespace `k8s.io`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A container that was created.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
    log: PathBuf,
}

impl Container {
    /// Returns the CRI's ID, which is also the container's in the namespace `k8s.io`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The result of a container that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Its exit code.
    pub code: i32,
    /// Its standard output and standard error.
    pub output: String,
}

impl Cri {
    /// Connects and waits until the CRI answers, which is later than containerd
    /// does. Logs of containers are kept below `logs`.
    pub fn connect(socket: &Path, logs: &Path) -> Result<Self> {
        let this = Self {
            connection: Connection::new(socket)?,
            logs: logs.to_owned(),
        };
        this.wait_until_up()
            .with_context(|| format!("the CRI at {socket:?} does not answer"))?;
        Ok(this)
    }

    /// Returns the same with another limit to each call, which goes along as its deadline.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.connection.set_timeout(timeout);
        self
    }

    fn wait_until_up(&self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.status() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// `Status(verbose)`: the answer's `info`, as JSON where it is JSON.
    pub fn status(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let answer: m::Info = self.call("Status", m::StatusRequest { verbose: true })?;
        Ok(info(answer))
    }

    /// `RunPodSandbox` with this runtime handler (`""` is the default one), on
    /// the network of the node. Its name stands for the time at which kubelet has seen the pod.
    ///
    /// The error's chain has the `tonic::Status` of the answer, here and below.
    pub fn run_pod_sandbox(&self, handler: &str, name: &str) -> Result<Sandbox> {
        let dir = self.logs.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create {dir:?}"))?;
        let security = m::SandboxSecurity {
            namespace_options: Some(m::NamespaceOption { network: m::NODE }),
        };
        let config = m::SandboxConfig {
            metadata: Some(m::Metadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
            }),
            log_directory: dir.display().to_string(),
            annotations: [("kubernetes.io/config.seen".to_owned(), name.to_owned())].into(),
            linux: Some(m::LinuxSandbox {
                security_context: Some(security),
            }),
        };
        let request = m::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let m::Id { id, .. } = self.call("RunPodSandbox", request)?;
        Ok(Sandbox { id, config })
    }

    /// `ImageStatus`, for the pod of a sandbox or for nobody. Returns the ID of the image, if it exists.
    pub fn image_status(&self, image: &str, sandbox: Option<&Sandbox>) -> Result<Option<String>> {
        let request = m::ImageStatusRequest {
            image: Some(spec(image, sandbox)),
        };
        let answer: m::ImageStatusResponse = self.call_images("ImageStatus", request)?;
        Ok(answer.image.map(|image| image.id))
    }

    /// `ListImages`: the IDs.
    pub fn list_images(&self) -> Result<BTreeSet<String>> {
        let answer: m::ListImagesResponse = self.call_images("ListImages", m::Empty {})?;
        Ok(answer.images.into_iter().map(|image| image.id).collect())
    }

    /// `PullImage` for a sandbox, with these credentials, a user and a password. Returns the image's ID.
    pub fn pull_image(
        &self,
        image: &str,
        sandbox: Option<&Sandbox>,
        credentials: Option<(&str, &str)>,
    ) -> Result<String> {
        let request = m::PullImageRequest {
            image: Some(spec(image, sandbox)),
            auth: credentials.map(|(username, password)| m::AuthConfig {
                username: username.to_owned(),
                password: password.to_owned(),
            }),
            sandbox_config: sandbox.map(|sandbox| sandbox.config.clone()),
        };
        let answer: m::Id = self.call_images("PullImage", request)?;
        Ok(answer.id)
    }

    /// `PodSandboxStatus(verbose)`: the answer's `info`.
    pub fn pod_sandbox_status(
        &self,
        sandbox: &Sandbox,
    ) -> Result<BTreeMap<String, serde_json::Value>> {
        let request = m::Id {
            id: sandbox.id.clone(),
            verbose: true,
        };
        let answer: m::Info = self.call("PodSandboxStatus", request)?;
        Ok(info(answer))
    }

    /// `CreateContainer` of an image that is on the node; `command` replaces
    /// the image's own.
    pub fn create_container(
        &self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<Container> {
        self.create_with_volumes(sandbox, name, image, command, &[])
    }

    /// The same with image volumes: paths in the container, and what is there.
    pub fn create_with_volumes(
        &self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
        volumes: &[(&str, &str)],
    ) -> Result<Container> {
        let volumes = volumes.iter().map(|&(path, image)| m::Mount {
            container_path: path.to_owned(),
            readonly: true,
            image: Some(spec(image, None)),
        });
        let security = m::ContainerSecurity {
            namespace_options: Some(m::NamespaceOption { network: m::NODE }),
        };
        let log = format!("{name}.log");
        let config = m::ContainerConfig {
            metadata: Some(m::ContainerMetadata {
                name: name.to_owned(),
            }),
            image: Some(spec(image, None)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            mounts: volumes.collect(),
            log_path: log.clone(),
            linux: Some(m::LinuxContainer {
                security_context: Some(security),
            }),
        };
        let request = m::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let m::Id { id, .. } = self.call("CreateContainer", request)?;
        let log = Path::new(&sandbox.config.log_directory).join(log);
        Ok(Container { id, log })
    }

    /// `StartContainer`.
    pub fn start_container(&self, container: &Container) -> Result<()> {
        let m::Empty {} = self.call("StartContainer", id(&container.id))?;
        Ok(())
    }

    /// `ExecSync`, to its good end: what the command wrote to stdout.
    pub fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        let request = m::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10,
        };
        let answer: m::ExecSyncResponse = self.call("ExecSync", request)?;
        let output = String::from_utf8_lossy(&answer.stdout).into_owned();
        if answer.exit_code != 0 {
            bail!("{command:?} ended with {}: {output}", answer.exit_code);
        }
        Ok(output)
    }

    /// Polls until the container has ended, then reads its log.
    pub fn wait(&self, container: &Container) -> Result<Exited> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer: m::ContainerStatusResponse =
                self.call("ContainerStatus", id(&container.id))?;
            let status = answer.status.context("ContainerStatus has no status")?;
            if status.state == m::EXITED {
                return Ok(Exited {
                    code: status.exit_code,
                    output: read_log(&container.log)?,
                });
            }
            if Instant::now() > deadline {
                bail!("container {} still runs after {DEADLINE:?}", container.id);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Creates, starts and awaits one container.
    pub fn run(
        &self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<Exited> {
        let container = self.create_container(sandbox, name, image, command)?;
        self.start_container(&container)?;
        self.wait(&container)
    }

    /// Stops and removes the sandbox with all its containers.
    pub fn remove_pod_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        self.remove(&sandbox.id)
    }

    /// Stops and removes all sandboxes with all their containers.
    pub fn remove_all(&self) -> Result<()> {
        let sandboxes: m::ListPodSandboxResponse = self.call("ListPodSandbox", m::Empty {})?;
        sandboxes
            .items
            .iter()
            .try_for_each(|item| self.remove(&item.id))
    }

    fn remove(&self, sandbox: &str) -> Result<()> {
        let m::Empty {} = self.call("StopPodSandbox", id(sandbox))?;
        let m::Empty {} = self.call("RemovePodSandbox", id(sandbox))?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.connection.call("RuntimeService", method, request)
    }

    fn call_images<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.connection.call("ImageService", method, request)
    }
}

/// Returns an image with the annotations of the pod that it is for.
fn spec(image: &str, sandbox: Option<&Sandbox>) -> m::ImageSpec {
    let annotations = sandbox.map(|sandbox| sandbox.config.annotations.clone());
    m::ImageSpec {
        image: image.to_owned(),
        annotations: annotations.unwrap_or_default(),
    }
}

fn id(id: &str) -> m::Id {
    m::Id {
        id: id.to_owned(),
        verbose: false,
    }
}

fn info(answer: m::Info) -> BTreeMap<String, serde_json::Value> {
    let parse =
        |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
    let pairs = answer.info.into_iter();
    pairs.map(|(key, text)| (key, parse(text))).collect()
}
