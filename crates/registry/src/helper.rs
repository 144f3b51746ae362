// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Docker's credential helpers: programs that answer with a credential for a registry.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use resnap_core::{Credential, Secret};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The limit on the time of a helper.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The limit on the size of a helper's answer.
const MAX_ANSWER: u64 = 64 << 10;

/// The name that stands for a refresh token in place of a password.
const TOKEN_NAME: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: Zeroizing<String>,
    secret: Zeroizing<String>,
}

/// Asks the helper `docker-credential-NAME` for a server's credential. It is run without a shell, and
/// killed when the returned future is dropped. `None` if it has none.
///
/// # Errors
/// A text that names the helper and has nothing of its answer.
pub(crate) async fn get(
    name: &str,
    directories: &[PathBuf],
    server: &str,
) -> Result<Option<Credential>, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(format!("{name:?} is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let path = if directories.is_empty() {
        PathBuf::from(&program)
    } else {
        let mut paths = directories.iter().map(|directory| directory.join(&program));
        let found = paths.find(|path| path.exists());
        found.ok_or_else(|| format!("{program} is in no helper directory"))?
    };
    match timeout(TIME_LIMIT, run(&path, server)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!(
            "{program}: no answer for {} s",
            TIME_LIMIT.as_secs()
        )),
    }
}

async fn run(path: &Path, server: &str) -> std::io::Result<Option<Credential>> {
    let mut child = Command::new(path)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read it has its reason.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_ANSWER as usize));
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    let status = child.wait().await?;
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(std::io::Error::other(status.to_string()));
    }
    // The error of the parser would quote the answer.
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| std::io::Error::other("the answer is not the expected JSON"))?;
    let secret = Secret::from(answer.secret.as_str());
    Ok(Some(if *answer.username == TOKEN_NAME {
        Credential::IdentityToken(secret)
    } else {
        Credential::Basic {
            username: answer.username.as_str().into(),
            password: secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program cannot be run while another test's child, not yet a program itself, has it open.
    static ONE_CHILD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn answer(script: &str) -> Result<Option<Credential>, String> {
        let _only = ONE_CHILD.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        get("test", &[directory.path().to_owned()], "a.b").await
    }

    #[tokio::test]
    async fn answers_are_read() {
        let echo = r#"read -r server; echo "{\"Username\":\"u\",\"Secret\":\"$server-$1\"}""#;
        let basic = Credential::Basic {
            username: "u".into(),
            password: "a.b-get".into(),
        };
        assert_eq!(answer(echo).await, Ok(Some(basic)));
        let token = r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"s"}'"#;
        let expected = Credential::IdentityToken("s".into());
        assert_eq!(answer(token).await, Ok(Some(expected)));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(answer(none).await, Ok(None));
    }

    #[tokio::test]
    async fn errors_name_the_helper_and_quote_no_answer() {
        for script in [
            "echo hidden; exit 3",
            "echo '{\"Username\":1,\"Secret\":\"hidden\"}'",
        ] {
            let text = answer(script).await.unwrap_err();
            assert!(text.contains("docker-credential-test"), "{text}");
            assert!(!text.contains("hidden"), "{text}");
        }
        for name in ["", "../x", "a b", "x;y"] {
            let text = get(name, &[], "a.b").await.unwrap_err();
            assert!(text.contains("is not the name"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_hangs_is_given_up() {
        let text = answer("exec sleep 60").await.unwrap_err();
        assert_eq!(text, "docker-credential-test: no answer for 10 s");
    }
}
