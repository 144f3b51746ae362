// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tags.

use resnap_core::{Digest, Kind, error_chain, media_type};

use crate::bed::Bed;
use crate::server::{Reply, Server};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;

fn manifest() -> Reply {
    Reply::new(200, MANIFEST).with("content-type", media_type::OCI_MANIFEST)
}

#[tokio::test]
async fn a_tag_names_the_manifest_that_the_registry_has_now() {
    let server = Server::start(|request, number| match (&*request.target, number) {
        (_, 0) => Reply::new(503, ""),
        ("/v2/team/web/manifests/1", _) => manifest(),
        ("/v2/team/web/manifests/latest", _) => Reply::new(200, "<html>"),
        _ => Reply::new(404, ""),
    })
    .await;
    let source = Bed::new().source();
    let name = |end: &str| format!("{}/team/web{end}", server.address);
    let image = source.resolve(&name(":1")).await.unwrap();
    assert_eq!(image.name, name(":1"));
    assert_eq!(image.target.digest, Digest::sha256(MANIFEST));
    assert_eq!(image.target.size, MANIFEST.len() as u64);
    assert_eq!(image.target.media_type, media_type::OCI_MANIFEST);
    for (end, kind, reason) in [
        ("", Kind::DataLoss, "answers with no manifest"),
        (":2", Kind::NotFound, "404"),
        ("@sha256:1", Kind::InvalidArgument, "no digest"),
        (":a b", Kind::InvalidArgument, "tag is malformed"),
    ] {
        let error = source.resolve(&name(end)).await.unwrap_err();
        let text = error_chain(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test]
async fn a_digest_is_compared() {
    let server = Server::start(|_, _| manifest()).await;
    let source = Bed::new().source();
    let of = |digest| format!("{}/web@{digest}", server.address);
    let right = of(Digest::sha256(MANIFEST));
    assert_eq!(source.resolve(&right).await.unwrap().name, right);
    let error = source.resolve(&of(Digest::sha256(b""))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error_chain(&error));
}

#[tokio::test]
async fn a_mirror_is_asked_for_tags_only_if_it_may_say_them() {
    let (mirror, server) = (
        Server::start(|_, _| manifest()).await,
        Server::start(|_, _| manifest()).await,
    );
    let bed = Bed::new();
    let hosts = |capabilities: &str| {
        let (server, mirror) = (&server.address, &mirror.address);
        let text = format!(
            "server = 'http://{server}'\n[host.'http://{mirror}']\ncapabilities = [{capabilities}]"
        );
        bed.hosts("up.stream", &text);
    };
    hosts("'pull'");
    bed.source().resolve("up.stream/web:1").await.unwrap();
    assert!(mirror.requests().is_empty());
    hosts("'pull', 'resolve'");
    bed.source().resolve("up.stream/web:1").await.unwrap();
    assert_eq!(mirror.targets(), ["/v2/web/manifests/1?ns=up.stream"]);
}
