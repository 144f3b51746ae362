// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Servers with TLS.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use resnap_core::Kind;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::bed::{BLOB, Bed, missing};
use crate::server::{Reply, Server};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Returns the PEM of a certificate for a name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Starts a server with a certificate; clients need one of `clients`, if given.
async fn start((certificate, key): (String, String), clients: Option<&Authority>) -> Server {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = config.with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Server::with_tls(Some(acceptor), |request, _| Reply::range(request, BLOB)).await
}

/// Returns a bed where `a.b` is served by a server, with more keys for its host.
fn bed(server: &Server, keys: &str) -> Bed {
    let bed = Bed::new();
    bed.hosts(
        "a.b",
        &format!("server = 'https://{}'\n{keys}", server.address),
    );
    bed
}

#[tokio::test]
async fn servers_are_verified() {
    let authority = Authority::new();
    let server = start(authority.issue("127.0.0.1"), None).await;
    let (kind, text) = bed(&server, "").failure(&missing("a.b")).await;
    assert_eq!(kind, Kind::Unavailable);
    assert!(text.contains("UnknownIssuer"), "{text}");
    let trusting = bed(&server, "ca = 'ca.crt'");
    std::fs::write(
        trusting.path().join("certs.d/a.b/ca.crt"),
        authority.0.pem(),
    )
    .unwrap();
    assert_eq!(trusting.fetch(&missing("a.b")).await.unwrap(), BLOB);
    let careless = bed(&server, "skip_verify = true");
    assert_eq!(careless.fetch(&missing("a.b")).await.unwrap(), BLOB);
    let wrong = start(authority.issue("other.name"), None).await;
    let other = bed(&wrong, "ca = 'ca.crt'");
    std::fs::write(other.path().join("certs.d/a.b/ca.crt"), authority.0.pem()).unwrap();
    let (_, text) = other.failure(&missing("a.b")).await;
    assert!(text.contains("not valid for name"), "{text}");
    assert!(wrong.requests().is_empty());
}

#[tokio::test]
async fn a_registry_on_this_machine_with_tls_is_not_verified() {
    let server = start(Authority::new().issue("other.name"), None).await;
    assert_eq!(
        Bed::new().fetch(&missing(&server.address)).await.unwrap(),
        BLOB
    );
}

#[tokio::test]
async fn a_self_signed_certificate_may_be_trusted_itself() {
    for (name, is_trusted) in [("127.0.0.1", true), ("other.name", false)] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        let server = start((certificate.clone(), key.serialize_pem()), None).await;
        let bed = bed(&server, "ca = ['ca.crt']");
        std::fs::write(bed.path().join("certs.d/a.b/ca.crt"), certificate).unwrap();
        assert_eq!(
            bed.fetch(&missing("a.b")).await.is_ok(),
            is_trusted,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let authority = Authority::new();
    let server = start(authority.issue("127.0.0.1"), Some(&authority)).await;
    let (certificate, key) = authority.issue("client");
    for (keys, is_taken) in [
        ("", false),
        ("client = [['c.cert', 'c.key']]", true),
        ("client = 'c.pem'", true),
    ] {
        let bed = bed(&server, &format!("ca = 'ca.crt'\n{keys}"));
        let directory = bed.path().join("certs.d/a.b");
        std::fs::write(directory.join("ca.crt"), authority.0.pem()).unwrap();
        std::fs::write(directory.join("c.cert"), &certificate).unwrap();
        std::fs::write(directory.join("c.key"), &key).unwrap();
        std::fs::write(directory.join("c.pem"), format!("{certificate}{key}")).unwrap();
        assert_eq!(bed.fetch(&missing("a.b")).await.is_ok(), is_taken, "{keys}");
    }
}

#[tokio::test]
async fn files_that_are_wrong_are_named() {
    let server = start(Authority::new().issue("127.0.0.1"), None).await;
    let missing_file = bed(&server, "ca = 'none.crt'");
    let (kind, text) = missing_file.failure(&missing("a.b")).await;
    assert_eq!(kind, Kind::FailedPrecondition);
    assert!(text.contains("a.b/none.crt: No such file"), "{text}");
    let empty = bed(&server, "ca = 'hosts.toml'");
    let (_, text) = empty.failure(&missing("a.b")).await;
    assert!(text.contains("has no PEM certificate"), "{text}");
}
