// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! TLS with the certificates of `hosts.toml`.

use std::sync::Arc;

use resnap_core::{Digest, Kind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use zeroize::Zeroizing;

use crate::certs::{read, unreadable};
use crate::failure::Failure;
use crate::hosts::TlsFiles;

/// The contents of the files for a host's TLS.
#[derive(Clone, Default)]
pub(crate) struct Material {
    /// PEM certificates.
    ca: Vec<Vec<u8>>,
    /// The PEM of the client's certificates and key. The first of several pairs counts.
    client: Option<Arc<Client>>,
    skip_verify: bool,
}

/// The PEM certificates of a client, and its key.
type Client = (Vec<u8>, Zeroizing<Vec<u8>>);

impl Material {
    /// Reads the files.
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, Failure> {
        let read = |path| read(path).map_err(|error| unreadable(path, &error));
        let ca = files
            .ca
            .iter()
            .map(|path| read(path))
            .collect::<Result<_, _>>()?;
        let client = match files.client.first() {
            None => None,
            Some((certificate, key)) => {
                let key = read(key.as_ref().unwrap_or(certificate))?;
                Some(Arc::new((read(certificate)?, Zeroizing::new(key))))
            }
        };
        Ok(Self {
            ca,
            client,
            skip_verify: files.skip_verify.unwrap_or(false),
        })
    }

    /// Returns what other hosts get of it: their certificates are verified, and they do not get the
    /// client's.
    pub(crate) fn for_others(&self) -> Self {
        Self {
            client: None,
            skip_verify: false,
            ..self.clone()
        }
    }

    /// Returns what tells it from others.
    pub(crate) fn identity(&self) -> (Vec<Digest>, bool) {
        let mut digests: Vec<_> = self.ca.iter().map(|pem| Digest::sha256(pem)).collect();
        if let Some(client) = &self.client {
            digests.push(Digest::sha256(b"client"));
            digests.push(Digest::sha256(&client.0));
            digests.push(Digest::sha256(&client.1));
        }
        (digests, self.skip_verify)
    }

    /// Returns the configuration of clients. The system's certificates are trusted, too.
    pub(crate) fn config(&self) -> Result<ClientConfig, Failure> {
        let invalid = |text: String| Failure::new(Kind::FailedPrecondition, text);
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let mut pinned = Vec::new();
        for pem in &self.ca {
            let certificates = certificates(pem).ok_or_else(|| {
                invalid("a file of ca in hosts.toml has no PEM certificate".into())
            })?;
            roots.add_parsable_certificates(certificates.iter().cloned());
            pinned.extend(certificates);
        }
        let inner = if roots.is_empty() {
            None
        } else {
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(
                builder
                    .build()
                    .map_err(|error| invalid(error.to_string()))?,
            )
        };
        let verifier = Verifier {
            inner,
            pinned,
            skip: self.skip_verify,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Some(client) = &self.client else {
            return Ok(builder.with_no_client_auth());
        };
        let pair = certificates(&client.0).zip(PrivateKeyDer::from_pem_slice(&client.1).ok());
        let (chain, key) = pair.ok_or_else(|| {
            invalid("the files of client in hosts.toml have no PEM certificate and key".into())
        })?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| invalid(format!("client in hosts.toml: {error}")))
    }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
}

/// Verifies servers as Go does: a self-signed certificate of `ca` may be the server's own.
#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    skip: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.skip {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(inner) = &self.inner else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // webpki refuses a CA's certificate as a server's after it has looked at its validity.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.pinned.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
