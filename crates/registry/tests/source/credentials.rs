// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Challenges, and whose credentials answer them.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resnap_core::{Credential, Kind, PodId, PullCredentials};

use crate::bed::{BLOB, Bed, missing, pod, target};
use crate::server::{End, Reply, Server};

const HOUR: Duration = PullCredentials::LIFETIME;

fn basic(password: &str) -> Credential {
    Credential::Basic {
        username: "u".into(),
        password: password.into(),
    }
}

/// Starts a registry that takes the name u and the password p.
async fn basic_registry() -> Server {
    Server::start(|request, _| match request.authorization() {
        None => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
        Some("Basic dTpw") => Reply::range(request, BLOB),
        Some(_) => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
    })
    .await
}

/// Starts a registry that takes the tokens of a server, and that server.
async fn token_registry(token: &'static str, answer: u16) -> (Server, Server) {
    let tokens = Server::start(move |_, _| {
        Reply::new(answer, format!(r#"{{"token":"{token}","expires_in":300}}"#))
    })
    .await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token?a=b",service="the registry",scope="repository:x:push""#,
        tokens.address
    );
    let registry = Server::start(move |request, _| match request.authorization() {
        Some("Bearer good") => Reply::range(request, BLOB),
        Some("Bearer weak") => Reply::new(403, r#"{"errors":[{"code":"DENIED"}]}"#),
        _ => Reply::new(401, "").with("www-authenticate", &challenge),
    })
    .await;
    (registry, tokens)
}

#[tokio::test]
async fn a_public_repository_needs_a_token_of_nobody() {
    let (registry, tokens) = token_registry("good", 200).await;
    assert_eq!(
        Bed::new().fetch(&missing(&registry.address)).await.unwrap(),
        BLOB
    );
    assert_eq!(
        tokens.targets(),
        ["/token?a=b&service=the+registry&scope=repository%3Ateam%2Fweb%3Apull"]
    );
    assert_eq!(tokens.authorizations(), [None]);
    let bearer = Some("Bearer good".to_owned());
    assert_eq!(registry.authorizations(), [None, bearer]);
}

#[tokio::test]
async fn passwords_go_to_the_token_server() {
    let (registry, tokens) = token_registry("good", 200).await;
    let bed = Bed::new();
    bed.credentials
        .insert(
            &format!("{}/team/web:2", registry.address),
            basic("p"),
            &pod("ns/a"),
            HOUR,
        )
        .unwrap();
    assert_eq!(bed.fetch(&missing(&registry.address)).await.unwrap(), BLOB);
    assert_eq!(tokens.authorizations(), [Some("Basic dTpw".to_owned())]);
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let (registry, tokens) = token_registry("good", 200).await;
    let bed = Bed::new();
    let reference = format!("{}/team/web", registry.address);
    let token = Credential::IdentityToken("r&t".into());
    bed.credentials
        .insert(&reference, token, &pod("ns/a"), HOUR)
        .unwrap();
    assert_eq!(bed.fetch(&missing(&registry.address)).await.unwrap(), BLOB);
    let request = &tokens.requests()[0];
    assert_eq!(
        (request.target.as_str(), request.authorization()),
        ("/token?a=b", None)
    );
    let start = "grant_type=refresh%5Ftoken&client_id=resnap&service=the%20registry&scope=";
    assert!(request.body.starts_with(start), "{}", request.body);
    assert!(
        request.body.ends_with("&refresh_token=r%26t"),
        "{}",
        request.body
    );
}

#[tokio::test]
async fn registry_tokens_go_to_the_registry() {
    let (registry, tokens) = token_registry("never", 200).await;
    let bed = Bed::new();
    let reference = format!("{}/team/web", registry.address);
    let token = Credential::RegistryToken("good".into());
    bed.credentials
        .insert(&reference, token, &pod("ns/a"), HOUR)
        .unwrap();
    assert_eq!(bed.fetch(&missing(&registry.address)).await.unwrap(), BLOB);
    assert!(tokens.requests().is_empty());
}

#[tokio::test]
async fn what_the_registry_answers_to_a_token_is_told() {
    for (token, answer, kind, part) in [
        ("weak", 200, Kind::PermissionDenied, "DENIED"),
        ("bad", 200, Kind::Unauthenticated, "401"),
        ("", 200, Kind::Unauthenticated, "the answer has no token"),
        ("good", 403, Kind::PermissionDenied, "/token: 403"),
    ] {
        let (registry, tokens) = token_registry(token, answer).await;
        let (found, text) = Bed::new().failure(&missing(&registry.address)).await;
        assert_eq!(found, kind, "{token} {answer}");
        assert!(text.contains(part), "{text}");
        assert!(!text.contains("Bearer") && !text.contains("a=b"), "{text}");
        drop(tokens);
    }
}

#[tokio::test]
async fn a_busy_token_server_is_asked_again() {
    let tokens = Server::start(|_, number| match number {
        0 => Reply::new(503, ""),
        _ => Reply::new(200, r#"{"access_token":"good"}"#),
    })
    .await;
    let challenge = format!(r#"Bearer realm="http://{}/""#, tokens.address);
    let registry = Server::start(move |request, _| match request.authorization() {
        Some("Bearer good") => Reply::range(request, BLOB),
        _ => Reply::new(401, "").with("www-authenticate", &challenge),
    })
    .await;
    assert_eq!(
        Bed::new().fetch(&missing(&registry.address)).await.unwrap(),
        BLOB
    );
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn a_large_token_is_refused() {
    let tokens = Server::start(|_, _| Reply::new(200, [b' '; 70 << 10]).end(End::Unsized)).await;
    let challenge = format!(r#"Bearer realm="http://{}/""#, tokens.address);
    let registry =
        Server::start(move |_, _| Reply::new(401, "").with("www-authenticate", &challenge)).await;
    let (_, text) = Bed::new().failure(&missing(&registry.address)).await;
    assert!(text.contains("the answer has no token"), "{text}");
}

#[tokio::test]
async fn a_credential_never_goes_to_a_token_server_without_https() {
    let challenge = r#"Bearer realm="http://192.0.2.1/token""#;
    let registry =
        Server::start(move |_, _| Reply::new(401, "").with("www-authenticate", challenge)).await;
    let mut bed = Bed::new();
    bed.settings.connect = Duration::from_millis(200);
    let reference = format!("{}/team/web", registry.address);
    bed.credentials
        .insert(&reference, basic("p"), &pod("ns/a"), HOUR)
        .unwrap();
    let (_, text) = bed.failure(&missing(&registry.address)).await;
    let part = "192.0.2.1/token: no credential is sent to a token server without https";
    assert!(text.contains(part), "{text}");
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    let issued = Arc::new(AtomicUsize::new(0));
    let issue = issued.clone();
    let tokens = Server::start(move |_, _| {
        let number = issue.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::new(200, format!(r#"{{"token":"{number}"}}"#))
    })
    .await;
    let challenge = format!(r#"Bearer realm="http://{}/""#, tokens.address);
    let registry = Server::start(move |request, number| match request.authorization() {
        Some("Bearer 1") if number == 1 => Reply::range(request, BLOB).end(End::Cut(9)),
        Some("Bearer 2") => Reply::range(request, BLOB),
        _ => Reply::new(401, "").with("www-authenticate", &challenge),
    })
    .await;
    let bed = Bed::new();
    let reference = format!("{}/team/web", registry.address);
    bed.credentials
        .insert(&reference, basic("p"), &pod("ns/a"), HOUR)
        .unwrap();
    assert_eq!(bed.fetch(&missing(&registry.address)).await.unwrap(), BLOB);
    let basic = Some("Basic dTpw".to_owned());
    assert_eq!(tokens.authorizations(), [basic.clone(), basic]);
}

#[tokio::test]
async fn a_pulls_credential_serves_its_pod_and_repository_only() {
    let registry = basic_registry().await;
    let bed = Bed::new();
    let reference = format!("{}/team/web:1", registry.address);
    bed.credentials
        .insert(&reference, basic("p"), &pod("ns/a"), HOUR)
        .unwrap();
    let blob = missing(&registry.address);
    assert_eq!(bed.fetch(&blob).await.unwrap(), BLOB);
    let mut others = vec![blob.clone(), blob.clone(), blob.clone()];
    others[0].pods = [pod("ns/b"), PodId::new("ns/a", "2")].into();
    others[1].pods.clear();
    others[2].reference = Some(format!("{}/team/other:1", registry.address));
    for other in others {
        let sent = registry.requests().len();
        let (kind, text) = bed.failure(&other).await;
        assert_eq!(kind, Kind::Unauthenticated, "{text}");
        assert!(
            registry.authorizations()[sent..]
                .iter()
                .all(Option::is_none)
        );
    }
    bed.credentials
        .insert(&reference, basic("p"), &pod("ns/a"), Duration::ZERO)
        .unwrap();
    let (kind, _) = bed.failure(&blob).await;
    assert_eq!(kind, Kind::Unauthenticated);
}

#[tokio::test]
async fn a_mirror_gets_its_own_credentials_only() {
    let mirror = basic_registry().await;
    let bed = Bed::new();
    bed.hosts(
        "127.0.0.1:9",
        &format!("server = 'http://{}'", mirror.address),
    );
    bed.credentials
        .insert("127.0.0.1:9/team/web", basic("p"), &pod("ns/a"), HOUR)
        .unwrap();
    bed.docker(r#"{"auths":{"127.0.0.1:9":{"username":"u","password":"p"}}}"#);
    let (kind, _) = bed.failure(&missing("127.0.0.1:9")).await;
    assert_eq!(kind, Kind::Unauthenticated);
    assert_eq!(mirror.authorizations(), [None]);
    let host = &mirror.address;
    bed.docker(&format!(
        r#"{{"auths":{{"{host}":{{"username":"u","password":"p"}}}}}}"#
    ));
    assert_eq!(bed.fetch(&missing("127.0.0.1:9")).await.unwrap(), BLOB);
    assert_eq!(
        mirror.targets()[0],
        format!("{}?ns=127.0.0.1%3A9", target())
    );
}

#[tokio::test]
async fn credentials_are_tried_in_order() {
    let registry = basic_registry().await;
    let bed = Bed::new();
    let host = &registry.address;
    let reference = format!("{host}/team/web");
    bed.credentials
        .insert(&reference, basic("wrong"), &pod("ns/a"), HOUR)
        .unwrap();
    bed.docker(&format!(
        r#"{{"auths":{{"{host}/team":{{"username":"u","password":"old"}},"http://{host}":{{"auth":"dTpw"}}}}}}"#
    ));
    assert_eq!(bed.fetch(&missing(host)).await.unwrap(), BLOB);
    let passwords = ["Basic dTp3cm9uZw==", "Basic dTpvbGQ=", "Basic dTpw"];
    let sent: Vec<_> = registry.authorizations().into_iter().flatten().collect();
    assert_eq!(sent, passwords);
}

#[tokio::test]
async fn a_helper_is_asked() {
    let registry = basic_registry().await;
    let bed = Bed::new();
    let host = &registry.address;
    let helpers = bed.path().join("helpers");
    let helper = helpers.join("docker-credential-test");
    std::fs::create_dir_all(&helpers).unwrap();
    bed.docker(&format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#));
    let (_, text) = bed.failure(&missing(host)).await;
    assert!(
        text.contains("docker-credential-test is in no helper directory"),
        "{text}"
    );
    let script = "#!/bin/sh\ncat > $0.in\necho '{\"Username\":\"u\",\"Secret\":\"p\"}'\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(bed.fetch(&missing(host)).await.unwrap(), BLOB);
    let asked = std::fs::read_to_string(helpers.join("docker-credential-test.in")).unwrap();
    assert_eq!(asked, *host);
}
