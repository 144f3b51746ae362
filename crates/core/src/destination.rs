// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Destinations of images and artifacts that are published.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{ByteStream, Descriptor, Digest, Referrer, Result};

/// A repository of a registry, or an OCI layout, that images and artifacts are published to. What is there
/// already is not written again. Everything may be called again after an error, and concurrently; dropping a
/// future ends the transfer, and leaves no part of a blob that counts as one.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Returns whether it has a blob, manifest or index.
    ///
    /// # Errors
    /// [`Kind::Unauthenticated`](crate::Kind::Unauthenticated) or
    /// [`Kind::PermissionDenied`](crate::Kind::PermissionDenied) if it asks for other credentials;
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) or
    /// [`Kind::DeadlineExceeded`](crate::Kind::DeadlineExceeded) if it does not answer. So all methods.
    async fn has(&self, descriptor: &Descriptor) -> Result<bool>;

    /// Stores a blob.
    ///
    /// # Errors
    /// [`Kind::DataLoss`](crate::Kind::DataLoss) if the bytes are not those of the descriptor's digest and size,
    /// and the first error of `bytes`.
    async fn put_blob(&self, blob: &Descriptor, bytes: ByteStream) -> Result<()>;

    /// Stores a manifest or index, whose blobs or manifests are there, under a tag if there is one. The tag leads
    /// to nothing else then.
    async fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<()>;

    /// Stores a manifest that refers to `subject`, whose blobs are there, so that it is listed among the
    /// referrers of that.
    async fn put_referrer(&self, referrer: &Referrer, bytes: Bytes, subject: &Digest)
    -> Result<()>;

    /// Removes a referrer of `subject`, so that it is not listed any more.
    ///
    /// # Errors
    /// [`Kind::Unimplemented`](crate::Kind::Unimplemented) if the registry lets nobody remove manifests.
    async fn remove_referrer(&self, referrer: &Referrer, subject: &Digest) -> Result<()>;
}
