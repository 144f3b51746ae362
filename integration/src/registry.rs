// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A real registry: Debian's `docker-registry`, on the loopback device.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::debian::Dist;

mod faulty;
mod link;
mod listening;
mod push;

pub use faulty::{Fault, FaultyHost};
pub use link::Link;
pub use push::Push;

/// The user and password of a private registry. Nothing else has this password.
pub const CREDENTIALS: (&str, &str) = ("user", "resnap-live-4711-only");

/// The credentials as `htpasswd -B` writes them.
const HTPASSWD: &str = "user:$2b$04$Y7rdkUB9qK2rkQKiELjLq.BSKyhqwwv1g7lrrYUBYG1GBRNm9xta2\n";

/// The file with the certificate of a registry with TLS, which signs itself.
const CERTIFICATE: &str = "certificate.pem";

/// The file with the registry's access log.
const LOG: &str = "access.log";

/// The time that the registry has to answer after its start.
const START: Duration = Duration::from_secs(10);

/// A running registry, empty at first; dropping it ends it and removes what it holds.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
}

/// The form of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Open,
    Private,
    Tls,
}

impl Registry {
    /// Starts one that keeps its blobs in `dir`, which is made.
    pub fn start(dist: &Dist, dir: &Path) -> Result<Self> {
        Self::start_with(dist, dir, Form::Open)
    }

    /// Starts one that serves [`CREDENTIALS`] only.
    pub fn start_private(dist: &Dist, dir: &Path) -> Result<Self> {
        Self::start_with(dist, dir, Form::Private)
    }

    /// Starts one with TLS, by the authority in [`Registry::authority`].
    pub fn start_tls(dist: &Dist, dir: &Path) -> Result<Self> {
        Self::start_with(dist, dir, Form::Tls)
    }

    /// Returns the path of the certificate that a client of [`Registry::start_tls`] trusts.
    pub fn authority(&self) -> PathBuf {
        self.dir.join(CERTIFICATE)
    }

    fn start_with(dist: &Dist, dir: &Path, form: Form) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
        // Free now, and nobody else on this loopback device looks for one.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = dir.join("config.yml");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"{}}}\n",
            dir.join("data").display(),
            match form {
                Form::Open | Form::Private => String::new(),
                Form::Tls => tls(dir)?,
            }
        );
        if form == Form::Private {
            let passwords = dir.join("htpasswd");
            fs::write(&passwords, HTPASSWD)?;
            text += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                passwords.display()
            );
        }
        fs::write(&config, text).with_context(|| format!("write {config:?}"))?;
        let child = Command::new(dist.tools().join("docker-registry"))
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join(LOG))?)
            .stderr(Stdio::null())
            .spawn()
            .context("start docker-registry")?;
        let mut this = Self {
            child,
            address,
            dir: dir.to_owned(),
        };
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = this.child.try_wait()? {
                bail!("docker-registry ended by itself: {status}");
            }
            if Instant::now() > deadline {
                bail!("docker-registry does not answer after {START:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    /// Returns the process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the requests so far, such as `GET /v2/web/blobs/sha256:…`, with the status of each.
    pub fn requests(&self) -> Result<Vec<(String, u16)>> {
        let log = fs::read_to_string(self.dir.join(LOG))?;
        let lines = log.lines().filter_map(|line| {
            let mut parts = line.split('"').skip(1);
            let request = parts.next()?.strip_suffix(" HTTP/1.1")?;
            let status = parts.next()?.split_whitespace().next()?;
            Some((request.to_owned(), status.parse().ok()?))
        });
        Ok(lines.collect())
    }

    /// Returns the host and port.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// The reference of an image here; containerd takes registries by this name without TLS.
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.address.port())
    }
}

/// Makes the certificate of a registry on this machine, and returns the setting that names it.
fn tls(dir: &Path) -> Result<String> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join("key.pem"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    let (certificate, key) = (certificate.display(), key.display());
    Ok(format!(", tls: {{certificate: {certificate}, key: {key}}}"))
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The run's folder goes with the run in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
