// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Repositories as destinations.

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use resnap_core::{
    BlobSource as _, ByteStream, Descriptor, Destination as _, Digest, Error, Kind, MissingBlob,
    Referrer, Result, error_chain, media_type,
};
use resnap_registry::{RegistryDestination, Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::bed::{BLOB, Bed, missing};
use crate::pushed::{Abilities, Registry};
use crate::server::{Reply, Server};

/// A registry as Debian has it.
const PLAIN: Abilities = Abilities {
    lists_referrers: false,
    removes: false,
};

const FULL: Abilities = Abilities {
    lists_referrers: true,
    removes: true,
};

fn blob() -> Descriptor {
    missing("a.b").descriptor
}

fn pieces(bytes: &[u8]) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(5).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces).map(Ok).boxed()
}

fn image(name: &str) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(json!({"schemaVersion": 2, "name": name}).to_string());
    let mut descriptor = blob();
    descriptor.media_type = media_type::OCI_MANIFEST.to_owned();
    descriptor.digest = Digest::sha256(&bytes);
    descriptor.size = bytes.len() as u64;
    (descriptor, bytes)
}

fn referrer(name: &str, subject: &Digest) -> (Referrer, Bytes) {
    let manifest = json!({"artifactType": "a/1", "name": name, "subject": {"digest": subject}});
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::sha256(&bytes);
    (Referrer::new("a/1", digest, bytes.len() as u64), bytes)
}

async fn listed(bed: &Bed, host: &str, subject: &Descriptor) -> Vec<Referrer> {
    let subject = MissingBlob {
        descriptor: subject.clone(),
        ..missing(host)
    };
    bed.source().referrers(&subject, &["a/1"]).await.unwrap()
}

fn failure<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
    let error = result.unwrap_err();
    (error.kind(), error_chain(&error))
}

fn short(digest: &Digest) -> &str {
    &digest.encoded()[..4]
}

#[tokio::test]
async fn what_is_there_is_not_pushed_again() {
    let registry = Registry::start(PLAIN).await;
    let (bed, host) = (Bed::new(), &registry.server.address);
    let destination = bed.destination(host);
    assert_eq!(destination.tag(), Some("1"));
    let (manifest, bytes) = image("web");
    let (digest, tagged) = (short(&blob().digest).to_owned(), short(&manifest.digest));
    let first = [
        format!("HEAD blobs/{digest}"),
        format!("HEAD blobs/{digest}"),
        "POST blobs/uploads/".to_owned(),
        "PUT blobs/uploads/1".to_owned(),
        "HEAD manifests/1".to_owned(),
        "PUT manifests/1".to_owned(),
        format!("HEAD manifests/{tagged}"),
    ];
    let again = [
        "HEAD blobs/",
        "HEAD blobs/",
        "HEAD manifests/1",
        "HEAD manifests/",
    ];
    for is_there in [false, true] {
        assert_eq!(destination.has(&blob()).await.unwrap(), is_there);
        destination.put_blob(&blob(), pieces(BLOB)).await.unwrap();
        destination
            .put_manifest(&manifest, bytes.clone(), Some("1"))
            .await
            .unwrap();
        destination
            .put_manifest(&manifest, bytes.clone(), None)
            .await
            .unwrap();
    }
    let asked = registry.asked();
    assert_eq!(asked[..first.len()], first);
    assert_eq!(asked.len(), first.len() + again.len());
    for (asked, start) in asked[first.len()..].iter().zip(again) {
        assert!(asked.starts_with(start), "{asked}");
    }
    let put = &registry.server.requests()[3];
    assert_eq!(put.header("content-length"), Some("36"));
    let resolved = bed
        .source()
        .resolve(&format!("{host}/team/web:1"))
        .await
        .unwrap();
    assert_eq!(resolved.target, manifest);

    // A tag moves, and an empty blob is one.
    let (moved, bytes) = image("moved");
    destination
        .put_manifest(&moved, bytes, Some("1"))
        .await
        .unwrap();
    let resolved = bed
        .source()
        .resolve(&format!("{host}/team/web:1"))
        .await
        .unwrap();
    assert_eq!(resolved.target.digest, moved.digest);
    let empty = Descriptor {
        digest: Digest::sha256(b""),
        size: 0,
        ..blob()
    };
    destination
        .put_blob(&empty, stream::empty().boxed())
        .await
        .unwrap();
    assert!(destination.has(&empty).await.unwrap());
}

#[tokio::test]
async fn referrers_are_listed_until_they_are_removed() {
    for (lists_referrers, removes) in [(false, false), (false, true), (true, true), (true, false)] {
        let registry = Registry::start(Abilities {
            lists_referrers,
            removes,
        })
        .await;
        let (bed, host) = (Bed::new(), &registry.server.address);
        let destination = bed.destination(host);
        let (subject, bytes) = image("subject");
        destination
            .put_manifest(&subject, bytes, Some("1"))
            .await
            .unwrap();
        let [(one, one_bytes), (two, two_bytes)] =
            ["one", "two"].map(|name| referrer(name, &subject.digest));
        for (referrer, bytes) in [
            (&one, one_bytes.clone()),
            (&two, two_bytes),
            (&one, one_bytes),
        ] {
            destination
                .put_referrer(referrer, bytes, &subject.digest)
                .await
                .unwrap();
        }
        let mut found = listed(&bed, host, &subject).await;
        found.sort_by_key(|referrer| *referrer != one);
        assert_eq!(found, [one.clone(), two.clone()]);
        let entries = registry
            .tagged(&subject.digest)
            .map(|entries| entries.len());
        assert_eq!(entries, (!lists_referrers).then_some(2));

        let removed = destination.remove_referrer(&one, &subject.digest).await;
        if lists_referrers && !removes {
            let (kind, text) = failure(removed);
            assert_eq!(kind, Kind::Unimplemented);
            let reason = "405 Method Not Allowed (UNSUPPORTED no); allow deletion";
            assert!(text.contains(reason), "{text}");
            continue;
        }
        removed.unwrap();
        assert_eq!(listed(&bed, host, &subject).await, [two]);
        let is_there = destination.has(&one.descriptor).await.unwrap();
        assert_eq!(is_there, !removes);
        destination
            .remove_referrer(&one, &subject.digest)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn other_entries_of_the_tag_stay() {
    let registry = Registry::start(PLAIN).await;
    let destination = bed_of(&registry);
    let subject = image("subject").0.digest;
    let tag = subject.as_str().replace(':', "-");
    let other = json!({"digest": "sha256:x", "artifactType": "b/1", "data": "eA==", "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [other], "annotations": {"k": "v"}});
    let put = |media_type: &str, document: &Value| {
        let stored = (media_type.to_owned(), document.to_string());
        registry
            .state
            .lock()
            .unwrap()
            .manifests
            .insert(tag.clone(), stored);
    };
    put(media_type::OCI_INDEX, &index);
    let add = |number: u32| {
        let (destination, subject) = (&destination, &subject);
        async move {
            let (referrer, bytes) = referrer(&number.to_string(), subject);
            destination.put_referrer(&referrer, bytes, subject).await
        }
    };
    try_join_all((0..8).map(add)).await.unwrap();
    let entries = registry.tagged(&subject).unwrap();
    assert_eq!(entries[0], other);
    assert_eq!(entries.len(), 9);
    let (first, _) = referrer("0", &subject);
    destination.remove_referrer(&first, &subject).await.unwrap();
    let entries = registry.tagged(&subject).unwrap();
    assert_eq!((&entries[0], entries.len()), (&other, 8));
    let document = registry.state.lock().unwrap().manifests[&tag].1.clone();
    assert!(
        document.contains(r#""annotations":{"k":"v"}"#),
        "{document}"
    );

    // What is no index is not overwritten.
    for (media_type, reason) in [
        (media_type::OCI_MANIFEST, "has no index"),
        (media_type::OCI_INDEX, "not an index"),
    ] {
        put(media_type, &json!({"manifests": 1}));
        let (referrer, bytes) = referrer("new", &subject);
        let put = destination.put_referrer(&referrer, bytes, &subject).await;
        let (kind, text) = failure(put);
        assert_eq!(kind, Kind::DataLoss);
        assert!(text.contains(reason) && text.contains(&tag), "{text}");
        let left = registry.state.lock().unwrap().manifests[&tag].1.clone();
        assert_eq!(left, r#"{"manifests":1}"#);
    }
}

fn bed_of(registry: &Registry) -> RegistryDestination {
    Bed::new().destination(&registry.server.address)
}

#[tokio::test]
async fn the_registry_takes_no_other_bytes() {
    let registry = Registry::start(PLAIN).await;
    let destination = bed_of(&registry);
    let other = [&BLOB[..35], b"!"].concat();
    let failing = pieces(BLOB)
        .chain(stream::iter([Err(Error::new(
            Kind::NotFound,
            "read",
            "it",
        ))]))
        .boxed();
    for (bytes, kind, reason) in [
        (
            pieces(&BLOB[..35]),
            Kind::DataLoss,
            "35 bytes; its descriptor says 36",
        ),
        (
            pieces(&[BLOB, b"!"].concat()),
            Kind::DataLoss,
            "more bytes than the 36",
        ),
        (
            pieces(&other),
            Kind::DataLoss,
            "its bytes have the digest sha256:",
        ),
        (
            pieces(b""),
            Kind::DataLoss,
            "0 bytes; its descriptor says 36",
        ),
        (failing, Kind::NotFound, "read it"),
    ] {
        let (actual, text) = failure(destination.put_blob(&blob(), bytes).await);
        assert_eq!(actual, kind, "{text}");
        assert!(text.contains(reason), "{text}");
    }
    let (manifest, _) = image("web");
    let put = destination.put_manifest(&manifest, Bytes::from_static(b"{}"), Some("1"));
    assert_eq!(failure(put.await).0, Kind::DataLoss);

    // Nor a part.
    let endless = pieces(BLOB).take(3).chain(stream::pending()).boxed();
    let blob = blob();
    let put = destination.put_blob(&blob, endless);
    timeout(Duration::from_millis(200), put).await.unwrap_err();
    assert!(registry.state.lock().unwrap().blobs.is_empty());
    let asked = registry.asked();
    assert!(asked.contains(&"POST blobs/uploads/".to_owned()));
    assert!(
        !asked.iter().any(|asked| asked.starts_with("PUT")),
        "{asked:?}"
    );
}

/// Returns a registry that wants a token, with the server of tokens, which gives `t0`, `t1` and so on.
async fn guarded(
    is_valid: impl Fn(&str, usize) -> bool + Send + Sync + 'static,
) -> (Registry, Server) {
    let tokens = Server::start(|request, number| match request.authorization() {
        Some("Basic dTpw") => Reply::new(200, format!(r#"{{"token":"t{number}"}}"#)),
        _ => Reply::new(401, ""),
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Registry::behind(FULL, move |request, number| {
        let token = request
            .authorization()
            .and_then(|value| value.strip_prefix("Bearer "));
        if token.is_some_and(|token| is_valid(token, number)) {
            return None;
        }
        let actions = if request.method == "HEAD" {
            "pull"
        } else {
            "pull,push"
        };
        let scope = format!("repository:team/web:{actions}");
        let challenge = format!(r#"Bearer realm="{realm}",service="x",scope="{scope}""#);
        let denied = r#"{"errors":[{"code":"UNAUTHORIZED","message":"who"}]}"#;
        Some(Reply::new(401, denied).with("www-authenticate", &challenge))
    })
    .await;
    (registry, tokens)
}

fn login(bed: &Bed, host: &str) {
    bed.docker(&json!({"auths": {host: {"auth": "dTpw"}}}).to_string());
}

#[tokio::test]
async fn one_token_is_for_all_requests() {
    // It expires.
    let (registry, tokens) =
        guarded(|token, number| token == "t0" && number < 6 || token == "t1").await;
    let (bed, host) = (Bed::new(), &registry.server.address);
    login(&bed, host);
    let destination = bed.destination(host);
    let (manifest, bytes) = image("web");
    for count in [1, 2] {
        destination.put_blob(&blob(), pieces(BLOB)).await.unwrap();
        destination
            .put_manifest(&manifest, bytes.clone(), Some("1"))
            .await
            .unwrap();
        assert_eq!(tokens.requests().len(), count);
    }
    let asked = "/token?service=x&scope=repository%3Ateam%2Fweb%3Apull%2Cpush";
    assert_eq!(tokens.targets(), [asked, asked]);
    let (referrer, _) = referrer("one", &manifest.digest);
    destination
        .remove_referrer(&referrer, &manifest.digest)
        .await
        .unwrap_err();
    let last = tokens.targets().pop().unwrap();
    assert!(last.ends_with("pull%2Cpush%2Cdelete"), "{last}");
    let sent = registry.server.requests();
    assert!(
        sent.iter()
            .all(|request| request.authorization() != Some("Basic dTpw"))
    );
}

#[tokio::test]
async fn credentials_that_do_not_serve_are_told() {
    let (registry, _tokens) = guarded(|_, _| false).await;
    let (bed, host) = (Bed::new(), &registry.server.address);
    login(&bed, host);
    let (kind, text) = failure(bed.destination(host).put_blob(&blob(), pieces(BLOB)).await);
    assert_eq!(kind, Kind::Unauthenticated);
    for part in [
        format!("push {} at {host}/team/web: ", blob().digest),
        format!("http://{host}/v2/team/web/blobs/{}: 401", blob().digest),
        format!("`docker login {host}`"),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert!(!text.contains("dTpw"));
}

#[tokio::test]
async fn another_host_gets_the_bytes_without_credentials() {
    let storage = Server::start(|_, _| Reply::new(201, "")).await;
    let location = format!("http://{}/store?sig=1", storage.address);
    let server = Server::start(move |request, _| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::new(202, "").with("location", &location),
    })
    .await;
    let bed = Bed::new();
    let host = &server.address;
    let secret = format!("[host.'http://{host}'.header]\nauthorization = 'secret'");
    bed.hosts(host, &secret);
    bed.destination(host)
        .put_blob(&blob(), pieces(BLOB))
        .await
        .unwrap();
    let secret = Some("secret".to_owned());
    assert_eq!(server.authorizations(), [secret.clone(), secret]);
    let stored = &storage.requests()[0];
    let target = format!("/store?sig=1&digest=sha256%3A{}", blob().digest.encoded());
    assert_eq!(
        (stored.target.as_str(), stored.authorization()),
        (target.as_str(), None)
    );
    assert_eq!(stored.body.as_bytes(), BLOB);
}

#[tokio::test]
async fn answers_that_lead_nowhere_are_errors() {
    for (location, reason) in [
        (None, "leads to an unusable address"),
        (
            Some("http://u:p@127.0.0.1/"),
            "leads to an unusable address",
        ),
        (Some("ftp://127.0.0.1/"), "leads to an unusable address"),
    ] {
        let server = Server::start(
            move |request, _| match (request.method.as_str(), location) {
                ("HEAD", _) => Reply::new(404, ""),
                (_, None) => Reply::new(202, ""),
                (_, Some(location)) => Reply::new(202, "").with("location", location),
            },
        )
        .await;
        let put = Bed::new()
            .destination(&server.address)
            .put_blob(&blob(), pieces(BLOB))
            .await;
        let (kind, text) = failure(put);
        assert_eq!(kind, Kind::Unavailable);
        assert!(text.contains(reason), "{text}");
    }
    // A request that changes something is not sent elsewhere.
    let other = Server::start(|_, _| Reply::new(201, "")).await;
    let elsewhere = format!("http://{}/", other.address);
    let server = Server::start(move |request, _| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::new(307, "").with("location", &elsewhere),
    })
    .await;
    let (manifest, bytes) = image("web");
    let put = Bed::new()
        .destination(&server.address)
        .put_manifest(&manifest, bytes, None)
        .await;
    let (_, text) = failure(put);
    assert!(text.contains("which is not followed"), "{text}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn mirrors_are_not_pushed_to_unless_the_file_says_so() {
    let (mirror, server) = (Registry::start(FULL).await, Registry::start(FULL).await);
    for (capabilities, has_server, to_mirror) in [
        ("", true, false),
        ("capabilities = ['pull', 'resolve']", true, false),
        ("capabilities = ['push']", true, true),
        ("capabilities = ['pull', 'push']", false, true),
    ] {
        let bed = Bed::new();
        let (at_mirror, at_server) = (&mirror.server.address, &server.server.address);
        let own = has_server.then(|| format!("server = 'http://{at_server}'\n"));
        let own = own.unwrap_or_default();
        bed.hosts(
            "up.stream",
            &format!("{own}[host.'http://{at_mirror}']\n{capabilities}"),
        );
        let before = (mirror.asked().len(), server.asked().len());
        let (manifest, bytes) = image(capabilities);
        let destination = bed.destination("up.stream");
        destination
            .put_manifest(&manifest, bytes, None)
            .await
            .unwrap();
        let asked = (
            mirror.asked().len() - before.0,
            server.asked().len() - before.1,
        );
        assert_eq!(
            asked,
            if to_mirror { (2, 0) } else { (0, 2) },
            "{capabilities}"
        );
    }
    let bed = Bed::new();
    bed.hosts(
        "up.stream",
        "server = 'http://127.0.0.1:1'\ncapabilities = ['pull']",
    );
    let (kind, text) = failure(bed.destination("up.stream").has(&blob()).await);
    assert_eq!(kind, Kind::FailedPrecondition);
    assert!(text.contains("no host with the capability push"), "{text}");
}

#[tokio::test]
async fn all_but_bodies_are_repeated() {
    let fails_once = |request: &crate::server::Request, number: usize| {
        let is_upload = request.target.contains("uploads/1");
        (number.is_multiple_of(2) && !is_upload).then(|| Reply::new(503, ""))
    };
    let registry = Registry::behind(PLAIN, fails_once).await;
    let destination = bed_of(&registry);
    destination.put_blob(&blob(), pieces(BLOB)).await.unwrap();
    let (manifest, bytes) = image("web");
    destination
        .put_manifest(&manifest, bytes, None)
        .await
        .unwrap();
    assert_eq!(
        registry
            .asked()
            .iter()
            .filter(|asked| asked.starts_with("POST"))
            .count(),
        2
    );

    let registry = Registry::behind(PLAIN, |request, _| {
        (request.method == "PUT").then(|| Reply::new(503, ""))
    })
    .await;
    let (kind, text) = failure(bed_of(&registry).put_blob(&blob(), pieces(BLOB)).await);
    assert_eq!(kind, Kind::Unavailable);
    assert!(text.contains("503"), "{text}");
    assert_eq!(
        registry
            .asked()
            .iter()
            .filter(|asked| asked.starts_with("PUT"))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_server_that_takes_nothing_ends_the_upload_and_slow_bytes_do_not() {
    let mut bed = Bed::new();
    bed.settings.stall = Duration::from_millis(300);
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/", deaf.local_addr().unwrap());
    let server = Server::start(move |request, _| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::new(202, "").with("location", &location),
    })
    .await;
    let bytes = Bytes::from(vec![7; 32 << 20]);
    let large = Descriptor {
        digest: Digest::sha256(&bytes),
        size: bytes.len() as u64,
        ..blob()
    };
    let stream = stream::iter([Ok(bytes)]).boxed();
    let (kind, text) = failure(
        bed.destination(&server.address)
            .put_blob(&large, stream)
            .await,
    );
    assert_eq!(kind, Kind::DeadlineExceeded);
    assert!(
        text.contains("it took no bytes and did not answer for 0.3 s"),
        "{text}"
    );

    let registry = Registry::start(PLAIN).await;
    let slow = pieces(BLOB).take(2).chain(stream::once(async {
        sleep(Duration::from_secs(1)).await;
        Ok(Bytes::from_static(&BLOB[10..]))
    }));
    let destination = bed.destination(&registry.server.address);
    destination.put_blob(&blob(), slow.boxed()).await.unwrap();

    // A registry may take longer to check the whole.
    let slow = Server::start(|request, _| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").with("location", "/here"),
        _ => Reply::new(201, "").after(Duration::from_millis(900)),
    })
    .await;
    bed.destination(&slow.address)
        .put_blob(&blob(), pieces(BLOB))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_cannot_be_a_name_is_refused() {
    let digest = blob().digest;
    for (reference, reason) in [
        (format!("a.b/web@{digest}"), "name a tag instead"),
        ("a.b/web:-1".to_owned(), "its tag is malformed"),
        ("a.b/WEB".to_owned(), "names no repository"),
    ] {
        let (kind, text) = failure(RegistryDestination::new(Settings::default(), &reference));
        assert_eq!(kind, Kind::InvalidArgument);
        assert!(text.contains(reason) && text.contains(&reference), "{text}");
    }
    let registry = Registry::start(PLAIN).await;
    let (manifest, bytes) = image("web");
    let destination = bed_of(&registry);
    let put = destination.put_manifest(&manifest, bytes, Some("../x"));
    let (kind, text) = failure(put.await);
    assert_eq!(kind, Kind::InvalidArgument);
    assert!(text.contains("is no tag of a registry"), "{text}");
    assert!(registry.asked().is_empty());
}
