// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Signers of root hashes: a key in a file, or a command that has one.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use resnap_core::{Error, Kind};
use resnap_publish::RootHashSigner;
use resnap_verity::{RootHash, SigningCertificate, SigningKey, Trust};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::publish_args::{SignArguments, SignOutput};

/// The limit on the time that a command takes for one signature. Some ask a person.
const COMMAND_TIME: Duration = Duration::from_secs(300);

/// The limit on the bytes of its answer.
const MAX_ANSWER: u64 = 64 << 10;

/// A signer.
pub(crate) struct Signer {
    certificate: SigningCertificate,
    /// The certificate alone, to verify signatures that a command has wrapped itself.
    trust: Trust,
    with: With,
}

enum With {
    Key(Box<SigningKey>),
    Command { command: String, output: SignOutput },
}

impl Signer {
    /// Reads the files of the arguments.
    pub(crate) fn new(arguments: &SignArguments) -> Result<Self> {
        let path = &arguments.certificate;
        let pem = read(path)?;
        let named = || format!("--certificate {path:?}");
        let certificate = SigningCertificate::from_pem(&pem).with_context(named)?;
        let mut trust = Trust::new();
        trust.add_signers(&pem).with_context(named)?;
        let with = match (&arguments.key, &arguments.sign_command) {
            (Some(path), _) => {
                let key = SigningKey::from_pem(&read(path)?);
                With::Key(Box::new(key.with_context(|| format!("--key {path:?}"))?))
            }
            (None, command) => With::Command {
                command: command.clone().unwrap_or_default(),
                output: arguments.sign_output,
            },
        };
        Ok(Self {
            certificate,
            trust,
            with,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {path:?}"))
}

#[async_trait]
impl RootHashSigner for Signer {
    async fn sign(&self, root_hash: &RootHash) -> resnap_core::Result<Vec<u8>> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            let sign = Error::new(
                Kind::FailedPrecondition,
                "sign the root hash",
                root_hash.to_string(),
            );
            sign.with_source(source)
        };
        let (raw, output) = match &self.with {
            With::Key(key) => {
                let raw = key.sign(root_hash).map_err(|error| failed(error.into()))?;
                (raw, SignOutput::Raw)
            }
            With::Command { command, output } => {
                let answer = ask(command, root_hash).await;
                (answer.map_err(|error| failed(error.into()))?, *output)
            }
        };
        match output {
            SignOutput::Raw => {
                let signature = self.certificate.signature(root_hash, &raw);
                signature.map_err(|error| failed(error.into()))
            }
            SignOutput::Pkcs7 => {
                let verified = self.trust.verify(&raw, root_hash, SystemTime::now());
                verified.map_err(|error| failed(error.into()))?;
                Ok(raw)
            }
        }
    }
}

/// Returns the answer of a command to a root hash.
async fn ask(command: &str, root_hash: &RootHash) -> Result<Vec<u8>> {
    let answer = tokio::time::timeout(COMMAND_TIME, run(command, root_hash)).await;
    let answer = answer
        .with_context(|| format!("--sign-command: no answer in {} s", COMMAND_TIME.as_secs()));
    answer?.with_context(|| format!("--sign-command {command:?}"))
}

async fn run(command: &str, root_hash: &RootHash) -> Result<Vec<u8>> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // It may answer without reading all.
        let _ = stdin.write_all(root_hash.to_string().as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = stdout {
        let mut stdout = stdout.take(MAX_ANSWER + 1);
        stdout.read_to_end(&mut answer).await?;
    }
    anyhow::ensure!(
        answer.len() as u64 <= MAX_ANSWER,
        "its answer has more than {MAX_ANSWER} bytes"
    );
    let status = child.wait().await?;
    anyhow::ensure!(status.success(), "it failed: {status}");
    anyhow::ensure!(!answer.is_empty(), "it answered nothing");
    Ok(answer)
}
