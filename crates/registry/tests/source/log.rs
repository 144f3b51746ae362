// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The log has no credentials.

use std::io;
use std::sync::{Arc, Mutex};

use resnap_core::{Credential, PullCredentials};

use crate::bed::{BLOB, Bed, missing, pod};
use crate::server::{Reply, Server};

/// The log as it is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_level_of_the_log_has_credentials() {
    let log = Log::default();
    let writer = log.clone();
    // For all of the process: what is logged through the crate log comes too.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let tokens = Server::start(|request, _| match request.authorization() {
        Some(_) => Reply::new(200, r#"{"token":"hidden-token"}"#),
        None => Reply::new(401, ""),
    })
    .await;
    let other = Server::start(|request, _| Reply::range(request, BLOB)).await;
    let location = format!("http://{}/x?signature=hidden-signature", other.address);
    let challenge = format!(r#"Bearer realm="http://{}/""#, tokens.address);
    let server = Server::start(move |request, _| match request.authorization() {
        Some("Bearer hidden-token") => Reply::new(307, "").with("location", &location),
        _ => Reply::new(401, "").with("www-authenticate", &challenge),
    })
    .await;
    let bed = Bed::new();
    let host = &server.address;
    let header = "[header]\nx-key = 'hidden-header'";
    bed.hosts(host, &format!("server = 'http://{host}'\n{header}"));
    let credential = Credential::Basic {
        username: "hidden-name".into(),
        password: "hidden-password".into(),
    };
    let reference = format!("{host}/team/web");
    let lifetime = PullCredentials::LIFETIME;
    bed.credentials
        .insert(&reference, credential, &pod("ns/a"), lifetime)
        .unwrap();
    assert_eq!(bed.fetch(&missing(host)).await.unwrap(), BLOB);
    // The name and the password as the header has them.
    let encoded = "aGlkZGVuLW5hbWU6aGlkZGVuLXBhc3N3b3Jk";
    let sent = tokens.authorizations().into_iter().flatten();
    assert_eq!(sent.collect::<Vec<_>>(), [format!("Basic {encoded}")]);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(host) && text.contains("team/web"), "{text}");
    for secret in ["hidden-", encoded] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}
