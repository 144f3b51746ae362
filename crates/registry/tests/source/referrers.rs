// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lists of referrers, of registries with the referrers API and without.

use std::time::Duration;

use resnap_core::{
    BlobSource, Descriptor, Digest, Kind, Referrer, Result, error_chain, media_type,
};

use crate::bed::{BLOB, Bed, missing};
use crate::server::{End, Reply, Request, Server};

const TYPES: [&str; 2] = ["a/1", "b/1"];

fn digest(name: &str) -> Digest {
    Digest::sha256(name.as_bytes())
}

fn entry(name: &str, artifact_type: &str) -> String {
    let (media_type, digest) = (media_type::OCI_MANIFEST, digest(name));
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{digest}","size":7,"artifactType":"{artifact_type}"}}"#
    )
}

fn document(entries: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    )
}

/// Returns an index of manifests with these names and artifact types.
fn index(entries: &[(&str, &str)]) -> Reply {
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, kind)| entry(name, kind))
        .collect();
    json(document(&entries))
}

fn json(document: impl AsRef<[u8]>) -> Reply {
    Reply::new(200, document).with("content-type", media_type::OCI_INDEX)
}

fn absent() -> Reply {
    Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
}

fn api() -> String {
    format!("/v2/team/web/referrers/{}", Digest::sha256(BLOB))
}

fn tag() -> String {
    let digest = Digest::sha256(BLOB);
    format!("/v2/team/web/manifests/sha256-{}", digest.encoded())
}

fn is_api(request: &Request) -> bool {
    request.target.starts_with(&api())
}

async fn referrers(bed: &Bed, host: &str) -> Result<Vec<Referrer>> {
    let mut subject = missing(host);
    subject.descriptor.media_type = media_type::OCI_MANIFEST.to_owned();
    bed.source().referrers(&subject, &TYPES).await
}

async fn names(bed: &Bed, host: &str) -> Vec<Digest> {
    let found = referrers(bed, host).await.unwrap().into_iter();
    found.map(|referrer| referrer.descriptor.digest).collect()
}

/// Lists what cannot be listed, with a limit on the time that a busy machine keeps, and returns the error's
/// kind and text.
async fn failure(host: &str) -> (Kind, String) {
    let mut bed = Bed::new();
    bed.settings.stall = Duration::from_secs(20);
    let error = referrers(&bed, host).await.unwrap_err();
    (error.kind(), error_chain(&error))
}

#[tokio::test]
async fn pages_are_followed_and_filtered() {
    let server = Server::start(|request, _| match request.target.split_once('?') {
        Some((_, "artifactType=a%2F1")) => {
            index(&[("one", "a/1"), ("other", "c/1")]).with("link", r#"<?last=x>; rel="next""#)
        }
        // A registry may ignore the filter.
        Some((_, "last=x" | "artifactType=b%2F1")) => index(&[("one", "a/1"), ("two", "b/1")]),
        _ => Reply::new(500, ""),
    })
    .await;
    let found = referrers(&Bed::new(), &server.address).await.unwrap();
    let expected = [("one", "a/1"), ("two", "b/1")];
    assert_eq!(
        found,
        expected.map(|(name, kind)| Referrer::new(kind, digest(name), 7))
    );
    let queries = ["artifactType=a%2F1", "last=x", "artifactType=b%2F1"];
    assert_eq!(
        server.targets(),
        queries.map(|query| format!("{}?{query}", api()))
    );
    for request in server.requests() {
        assert_eq!(request.header("accept"), Some(media_type::OCI_INDEX));
    }
}

#[tokio::test]
async fn without_the_api_the_tag_counts() {
    for answer in [404, 200] {
        let server = Server::start(move |request, _| match is_api(request) {
            // A page for people.
            true => Reply::new(answer, "<html>").with("content-type", "text/html"),
            false => index(&[("one", "a/1"), ("other", "c/1"), ("two", "b/1")]),
        })
        .await;
        let found = names(&Bed::new(), &server.address).await;
        assert_eq!(found, [digest("one"), digest("two")]);
        assert_eq!(
            server.targets(),
            [format!("{}?artifactType=a%2F1", api()), tag()]
        );
    }
}

#[tokio::test]
async fn no_referrers_are_no_error() {
    let server = Server::start(|_, _| absent()).await;
    assert!(names(&Bed::new(), &server.address).await.is_empty());
    assert_eq!(server.requests().len(), 2);
    let server = Server::start(|_, _| index(&[])).await;
    assert!(names(&Bed::new(), &server.address).await.is_empty());
    assert!(
        server
            .targets()
            .iter()
            .all(|target| target.starts_with(&api()))
    );
}

fn mirrored(bed: &Bed, mirror: &Server, registry: &Server) {
    let text = format!(
        "server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull']",
        registry.address, mirror.address
    );
    // The registry is the one with this host, which can be asked for what it alone has.
    bed.hosts(&registry.address, &text);
}

#[tokio::test]
async fn a_mirror_without_hides_nothing_of_the_registry() {
    let (mirror, registry) = (
        Server::start(|_, _| absent()).await,
        Server::start(|_, _| index(&[("one", "a/1")])).await,
    );
    let bed = Bed::new();
    mirrored(&bed, &mirror, &registry);
    assert_eq!(names(&bed, &registry.address).await, [digest("one")]);
    let asked = mirror.targets();
    assert!(
        asked
            .iter()
            .all(|target| target.contains("ns=127.0.0.1%3A")),
        "{asked:?}"
    );
    assert!(
        registry
            .targets()
            .iter()
            .all(|target| !target.contains("ns="))
    );
}

#[tokio::test]
async fn a_mirror_that_fails_hides_nothing_either() {
    for (mirror, registry, expected) in [
        // The mirror's answer is all that there is.
        (404, 500, Ok(())),
        // The registry's own answer settles it.
        (403, 404, Ok(())),
        (500, 404, Ok(())),
        // With credentials there may be some.
        (404, 401, Err(Kind::Unauthenticated)),
        (404, 403, Err(Kind::PermissionDenied)),
        (500, 500, Err(Kind::Unavailable)),
    ] {
        let servers =
            [mirror, registry].map(|status| Server::start(move |_, _| Reply::new(status, "")));
        let servers = futures::future::join_all(servers).await;
        let bed = Bed::new();
        mirrored(&bed, &servers[0], &servers[1]);
        let found = referrers(&bed, &servers[1].address).await;
        let found = found.map(|found| assert!(found.is_empty()));
        assert_eq!(
            found.map_err(|error| error.kind()),
            expected,
            "{mirror} {registry}"
        );
    }
}

#[tokio::test]
async fn what_fails_for_a_moment_is_asked_again() {
    let server = Server::start(|_, number| match number {
        0 => Reply::new(503, ""),
        1 => index(&[("one", "a/1")]).end(End::Cut(9)),
        _ => index(&[("one", "a/1")]),
    })
    .await;
    assert_eq!(names(&Bed::new(), &server.address).await, [digest("one")]);
    let server = Server::start(|_, _| Reply::new(503, "")).await;
    assert_eq!(failure(&server.address).await.0, Kind::Unavailable);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn tokens_are_got_once_for_all_pages() {
    let tokens = Server::start(|_, _| Reply::new(200, r#"{"token":"good"}"#)).await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="x""#,
        tokens.address
    );
    let server = Server::start(move |request, _| match request.authorization() {
        Some("Bearer good") if request.target.contains("last=") => index(&[("two", "a/1")]),
        Some("Bearer good") => index(&[("one", "a/1")]).with("link", "<?last=1>; rel=next"),
        _ => Reply::new(401, "").with("www-authenticate", &challenge),
    })
    .await;
    let found = names(&Bed::new(), &server.address).await;
    assert_eq!(found, [digest("one"), digest("two")]);
    assert_eq!(
        tokens.targets(),
        ["/token?service=x&scope=repository%3Ateam%2Fweb%3Apull"]
    );
}

#[tokio::test]
async fn endless_pages_end() {
    let server =
        Server::start(|_, number| index(&[]).with("link", &format!("<?last={number}>; rel=next")))
            .await;
    let (kind, text) = failure(&server.address).await;
    assert_eq!(kind, Kind::ResourceExhausted);
    assert!(text.contains("the list has more than 64 pages"), "{text}");
    assert_eq!(server.requests().len(), 65);
}

#[tokio::test]
async fn slow_pages_end() {
    let server = Server::start(|_, number| {
        std::thread::sleep(Duration::from_millis(100));
        index(&[]).with("link", &format!("<?last={number}>; rel=next"))
    })
    .await;
    let bed = Bed::new();
    let error = referrers(&bed, &server.address).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let text = error_chain(&error);
    assert!(text.contains("the list took longer than 2 s"), "{text}");
}

#[tokio::test]
async fn pages_of_other_hosts_are_not_asked_for() {
    let other = Server::start(|_, _| index(&[("one", "a/1")])).await;
    let link = format!("<http://{}{}>; rel=next", other.address, api());
    // The second is the host itself, with a name and a password.
    for link in [link, format!("<//u:p@HOST{}>; rel=next", api())] {
        let server = Server::start(move |request, _| {
            let host = request.header("host").unwrap();
            index(&[("two", "a/1")]).with("link", &link.replace("HOST", host))
        })
        .await;
        let (kind, text) = failure(&server.address).await;
        assert_eq!(kind, Kind::Unavailable);
        assert!(text.contains("which is not at this host"), "{text}");
        assert_eq!((server.requests().len(), other.requests().len()), (1, 0));
    }
}

#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let other = Server::start(|_, _| index(&[("one", "a/1")])).await;
    let redirect = format!("http://{}/elsewhere", other.address);
    let server = Server::start(move |_, _| Reply::new(307, "").with("location", &redirect)).await;
    let bed = Bed::new();
    let text =
        "[host.'HOST']\ncapabilities = ['pull']\n[host.'HOST'.header]\nauthorization = 'secret'";
    bed.hosts(
        &server.address,
        &text.replace("HOST", &format!("http://{}", server.address)),
    );
    assert_eq!(names(&bed, &server.address).await, [digest("one")]);
    assert!(
        server
            .authorizations()
            .iter()
            .all(|sent| sent.as_deref() == Some("secret"))
    );
    assert_eq!(other.authorizations(), [None, None]);
}

#[tokio::test]
async fn manifests_that_refer_to_themselves_are_none() {
    let subject = String::from_utf8(BLOB.to_vec()).unwrap();
    let server = Server::start(move |_, _| index(&[(&subject, "a/1"), ("one", "a/1")])).await;
    assert_eq!(names(&Bed::new(), &server.address).await, [digest("one")]);
}

#[tokio::test]
async fn hostile_lists_are_refused() {
    let many: Vec<_> = (0..4097)
        .map(|number| entry(&number.to_string(), "c/1"))
        .collect();
    for (body, kind, reason) in [
        (
            vec![b' '; (4 << 20) + 1],
            Kind::ResourceExhausted,
            "a document of more than 4194304 bytes",
        ),
        (
            document(&many).into_bytes(),
            Kind::ResourceExhausted,
            "more than 4096 referrers",
        ),
        (b"<html>".to_vec(), Kind::DataLoss, "not an index"),
        (
            br#"{"manifests":[1]}"#.to_vec(),
            Kind::DataLoss,
            "not an index",
        ),
    ] {
        for unsized_body in [false, true] {
            let body = body.clone();
            let end = if unsized_body {
                End::Unsized
            } else {
                End::Complete
            };
            let server = Server::start(move |_, _| json(&body).end(end)).await;
            let (actual, text) = failure(&server.address).await;
            assert_eq!(actual, kind, "{text}");
            assert!(text.contains(reason), "{text}");
            assert_eq!(server.requests().len(), 1);
        }
    }
    let server = Server::start(|request, _| match is_api(request) {
        true => absent(),
        false => Reply::new(200, "{}").with("content-type", media_type::OCI_MANIFEST),
    })
    .await;
    let (kind, text) = failure(&server.address).await;
    assert_eq!(kind, Kind::DataLoss);
    assert!(text.contains("answers with no index"), "{text}");
}

#[tokio::test]
async fn a_stalled_list_ends() {
    let server = Server::start(|_, _| index(&[("one", "a/1")]).end(End::Stall(5))).await;
    let error = referrers(&Bed::new(), &server.address).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn nobody_to_ask_is_an_error() {
    let mut subject = missing("any.where");
    subject.reference = None;
    let error = Bed::new()
        .source()
        .referrers(&subject, &TYPES)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let text = error_chain(&error);
    assert!(text.starts_with("list the referrers of sha256:"), "{text}");
}

#[tokio::test]
async fn referrers_are_opened_as_manifests() {
    let server = Server::start(|_, _| Reply::new(200, "manifest")).await;
    let mut blob = missing(&server.address);
    let referrer = Referrer::new("a/1", digest("manifest"), 8);
    let Descriptor { digest, .. } = &referrer.descriptor;
    let target = format!("/v2/team/web/manifests/{digest}");
    blob.descriptor = referrer.descriptor.clone();
    assert_eq!(Bed::new().fetch(&blob).await.unwrap(), b"manifest");
    assert_eq!(server.targets(), [target]);
}
