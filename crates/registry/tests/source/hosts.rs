// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Mirrors, repositories, redirects and the descriptor's own addresses.

use resnap_core::Kind;

use crate::bed::{BLOB, Bed, missing, target};
use crate::server::{Reply, Server};

async fn good() -> Server {
    Server::start(|request, _| Reply::range(request, BLOB)).await
}

async fn empty() -> Server {
    Server::start(|_, _| Reply::new(404, "")).await
}

#[tokio::test]
async fn mirrors_come_first_and_the_server_last() {
    let (push, mirror, server) = (good().await, empty().await, good().await);
    let bed = Bed::new();
    bed.hosts(
        "up.stream",
        &format!(
            r#"
            server = "http://{}"
            [host."http://{}"]
            capabilities = ["push"]
            [host."http://{}/v2/cache"]
            capabilities = ["pull", "resolve"]
            override_path = true
            [host."http://{}/v2/cache".header]
            x-token = ["one"]
            "#,
            server.address, push.address, mirror.address, mirror.address
        ),
    );
    assert_eq!(bed.fetch(&missing("up.stream")).await.unwrap(), BLOB);
    assert!(push.requests().is_empty());
    let cached = target().replace("/v2/", "/v2/cache/");
    assert_eq!(mirror.targets(), [format!("{cached}?ns=up.stream")]);
    assert_eq!(mirror.requests()[0].header("x-token"), Some("one"));
    assert_eq!(server.targets(), [format!("{}?ns=up.stream", target())]);
    assert_eq!(server.requests()[0].header("x-token"), None);
}

#[tokio::test]
async fn the_default_directory_serves_all_registries() {
    let server = good().await;
    let bed = Bed::new();
    bed.hosts("_default", &format!("server = 'http://{}'", server.address));
    assert_eq!(bed.fetch(&missing("any.where:5000")).await.unwrap(), BLOB);
    assert_eq!(
        server.targets(),
        [format!("{}?ns=any.where%3A5000", target())]
    );
}

#[tokio::test]
async fn other_repositories_come_after_the_reference() {
    let server = Server::start(|request, _| {
        if request.target.contains("/mirror/web/") {
            Reply::range(request, BLOB)
        } else {
            Reply::new(404, "")
        }
    })
    .await;
    let mut blob = missing(&server.address);
    let paths = ["team/web", "../x", "mirror/web", "never/asked"].map(str::to_owned);
    blob.repositories
        .insert(server.address.clone(), paths.to_vec());
    assert_eq!(Bed::new().fetch(&blob).await.unwrap(), BLOB);
    let second = target().replace("/team/", "/mirror/");
    assert_eq!(server.targets(), [target(), second]);
}

#[tokio::test]
async fn the_error_names_each_host_and_its_answer() {
    let mirror = Server::start(|_, _| Reply::new(403, "")).await;
    let server = empty().await;
    let bed = Bed::new();
    bed.hosts(
        "up.stream",
        &format!(
            "server = 'http://{}'\n[host.'http://{}']",
            server.address, mirror.address
        ),
    );
    bed.hosts("bro.ken", "server = 1");
    let mut blob = missing("up.stream");
    blob.repositories
        .insert("bro.ken".to_owned(), vec!["x".to_owned()]);
    let (kind, text) = bed.failure(&blob).await;
    assert_eq!(kind, Kind::PermissionDenied);
    for part in [
        &mirror.address,
        "403",
        &server.address,
        "404",
        "bro.ken/hosts.toml: server",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    blob.reference = None;
    blob.repositories.clear();
    let (kind, text) = bed.failure(&blob).await;
    assert_eq!(kind, Kind::NotFound);
    assert!(text.contains("neither a reference nor a label"), "{text}");
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_credentials_and_no_headers() {
    let other = Server::start(|request, number| match number {
        0 => Reply::range(request, BLOB),
        _ => Reply::new(403, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let location = format!("http://{}/blob?signature=secret", other.address);
    let server = Server::start(move |request, _| match request.authorization() {
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        Some(_) if request.target.starts_with("/moved") => {
            Reply::new(307, "").with("location", &location)
        }
        Some(_) => Reply::new(302, "").with("location", "/moved"),
    })
    .await;
    let bed = Bed::new();
    let host = &server.address;
    bed.hosts(
        host,
        &format!("server = 'http://{host}'\n[header]\nx-token = 'hidden'"),
    );
    bed.docker(&format!(
        r#"{{"auths":{{"{host}":{{"username":"u","password":"p"}}}}}}"#
    ));
    assert_eq!(bed.fetch(&missing(host)).await.unwrap(), BLOB);
    let moved = &server.requests()[2];
    assert_eq!(moved.authorization(), Some("Basic dTpw"));
    assert_eq!(moved.header("x-token"), Some("hidden"));
    let request = &other.requests()[0];
    assert_eq!(
        (request.authorization(), request.header("x-token")),
        (None, None)
    );
    let (kind, text) = bed.failure(&missing(host)).await;
    assert_eq!(kind, Kind::Unavailable, "{text}");
    assert!(
        text.contains(&other.address) && !text.contains("secret"),
        "{text}"
    );
    assert!(other.authorizations().iter().all(Option::is_none));
}

#[tokio::test]
async fn redirects_are_limited() {
    let server = Server::start(|_, _| Reply::new(302, "").with("location", "/again")).await;
    let (_, text) = Bed::new().failure(&missing(&server.address)).await;
    assert!(text.contains("more than 10 redirects"), "{text}");
    assert_eq!(server.requests().len(), 11);
    for location in ["ftp://x/", "http://user:secret@x/"] {
        let server =
            Server::start(move |_, _| Reply::new(302, "").with("location", location)).await;
        let (_, text) = Bed::new().failure(&missing(&server.address)).await;
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn the_descriptors_addresses_come_last_and_get_no_credentials() {
    let other = Server::start(|request, number| match number {
        0 => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        1 => Reply::new(302, "").with("location", "http://example.com/plain"),
        _ => Reply::range(request, BLOB),
    })
    .await;
    let server = empty().await;
    let bed = Bed::new();
    let host = &other.address;
    bed.docker(&format!(
        r#"{{"auths":{{"{host}":{{"username":"u","password":"p"}}}}}}"#
    ));
    let mut blob = missing(&server.address);
    blob.urls = [
        "http://example.com/plain".to_owned(),
        format!("http://user:secret@{host}/0"),
        format!("http://{host}/1"),
        format!("http://{host}/2"),
        format!("http://{host}/3"),
    ]
    .to_vec();
    assert_eq!(bed.fetch(&blob).await.unwrap(), BLOB);
    assert_eq!(server.targets(), [target()]);
    assert_eq!(other.targets(), ["/1", "/2", "/3"]);
    assert_eq!(other.authorizations(), [None, None, None]);
}
