// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Pushes of single blobs and manifests, which no program here does (distribution specification, "Push").

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The pushes to one repository of a registry without TLS.
#[derive(Debug)]
pub struct Push {
    address: SocketAddr,
    login: String,
    repository: String,
}

struct Answer {
    status: u16,
    /// By names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Push {
    /// Returns the pushes by a user with a password to a repository, such as `web`.
    pub fn new(address: SocketAddr, (user, password): (&str, &str), repository: &str) -> Self {
        Self {
            address,
            login: STANDARD.encode(format!("{user}:{password}")),
            repository: repository.to_owned(),
        }
    }

    /// Pushes a blob.
    ///
    /// # Errors
    /// If the registry refuses it.
    pub fn blob(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("/v2/{}/blobs/uploads/", self.repository);
        let answer = self.ask("POST", &path, "", &[])?;
        let to = answer.headers.get("location").context("no location")?;
        // It may name the host.
        let path = to.find("/v2/").map_or(&**to, |start| &to[start..]);
        let and = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{and}digest={digest}");
        let octets = "content-type: application/octet-stream\r\n";
        let answer = self.ask("PUT", &path, octets, bytes)?;
        ensure!(answer.status == 201, "{path}: {}", answer.text());
        Ok(())
    }

    /// Pushes a manifest or index to a digest or tag. Returns whether the registry lists it as a referrer of
    /// its subject.
    ///
    /// # Errors
    /// If the registry refuses it.
    pub fn manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.manifests(name);
        let header = format!("content-type: {media_type}\r\n");
        let answer = self.ask("PUT", &path, &header, bytes)?;
        ensure!(answer.status == 201, "{path}: {}", answer.text());
        Ok(answer.headers.contains_key("oci-subject"))
    }

    /// Returns the manifest or index under a tag, if there is one.
    ///
    /// # Errors
    /// If the registry refuses.
    pub fn tagged(&self, tag: &str, media_type: &str) -> Result<Option<Vec<u8>>> {
        let path = self.manifests(tag);
        let answer = self.ask("GET", &path, &format!("accept: {media_type}\r\n"), &[])?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            _ => bail!("{path}: {}", answer.text()),
        }
    }

    fn manifests(&self, name: &str) -> String {
        format!("/v2/{}/manifests/{name}", self.repository)
    }

    /// Sends a request and reads the answer. By HTTP/1.0, so that its body ends with the connection, and
    /// [`Registry::requests`](super::Registry::requests) does not count it.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        let (address, login, length) = (self.address, &self.login, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Basic {login}\r\n\
             content-length: {length}\r\n{headers}\r\n"
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        let (head, body) = answer.split_at(head.context("no answer")? + 4);
        let head = str::from_utf8(head)?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        Ok(Answer {
            status,
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_vec(),
        })
    }
}

impl Answer {
    fn text(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}
