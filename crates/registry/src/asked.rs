// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The requests of the distribution API, without the host and its credentials.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use resnap_core::media_type::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use resnap_core::{Descriptor, Digest, ReferrerList, media_type};

/// The object of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    /// A blob or a manifest, from this byte on.
    Blob(&'a Descriptor, u64),
    /// The referrers of a manifest that have an artifact type.
    Referrers(&'a Digest, &'a str),
    /// A further page of referrers.
    Page(&'a Url),
    /// The index that clients keep under a tag where a registry does not list referrers.
    ReferrersTag(&'a Digest),
    /// The index or manifest of a tag or digest.
    Image(&'a str),
    /// Whether a blob or manifest is there.
    Presence(&'a Descriptor),
    /// The digest of a tag's manifest.
    Tag(&'a str),
    /// A place for a new blob.
    NewUpload,
    /// The storing of a manifest under a tag or digest.
    Manifest {
        name: &'a str,
        media_type: &'a str,
        bytes: &'a Bytes,
    },
    /// The removal of a manifest.
    Removal(&'a Digest),
}

impl Asked<'_> {
    pub(crate) fn method(self) -> Method {
        match self {
            Self::Presence(_) | Self::Tag(_) => Method::HEAD,
            Self::NewUpload => Method::POST,
            Self::Manifest { .. } => Method::PUT,
            Self::Removal(_) => Method::DELETE,
            _ => Method::GET,
        }
    }

    pub(crate) fn body(self) -> Option<Bytes> {
        match self {
            // With a length, which is 0.
            Self::NewUpload => Some(Bytes::new()),
            Self::Manifest { bytes, .. } => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Returns whether the response with a status has what was asked for.
    pub(crate) fn is_answer(self, status: StatusCode) -> bool {
        match self.method() {
            Method::GET => matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT),
            _ => status.is_success(),
        }
    }

    /// Returns the address at a host with the root `root`. A mirror is told the registry in `mirrored`.
    pub(crate) fn url(self, root: &Url, repository: &str, mirrored: Option<&str>) -> Url {
        let mut url = match self {
            Self::Page(url) => url.clone(),
            _ => root.clone(),
        };
        if let Some(path) = self.path() {
            let root = root.path().trim_end_matches('/');
            url.set_path(&format!("{root}/{repository}/{path}"));
        }
        if let Self::Referrers(_, artifact_type) = self {
            let mut query = url.query_pairs_mut();
            query.append_pair("artifactType", artifact_type);
        }
        let is_told = url.query_pairs().any(|(key, _)| key == "ns");
        if let Some(host) = mirrored.filter(|_| !is_told) {
            url.query_pairs_mut().append_pair("ns", host);
        }
        url
    }

    /// Returns the path below the repository.
    fn path(self) -> Option<String> {
        Some(match self {
            Self::Blob(blob, _) | Self::Presence(blob) => {
                let kind = if is_manifest(blob) {
                    "manifests"
                } else {
                    "blobs"
                };
                format!("{kind}/{}", blob.digest)
            }
            Self::Referrers(subject, _) => format!("referrers/{subject}"),
            Self::ReferrersTag(subject) => format!("manifests/{}", ReferrerList::tag(subject)),
            Self::Image(name) | Self::Tag(name) | Self::Manifest { name, .. } => {
                format!("manifests/{name}")
            }
            Self::Removal(digest) => format!("manifests/{digest}"),
            // Registries know it with this slash only.
            Self::NewUpload => "blobs/uploads/".to_owned(),
            Self::Page(_) => return None,
        })
    }

    /// Returns the headers for all servers.
    pub(crate) fn headers(self) -> HeaderMap {
        let images = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        let accept = match self {
            Self::Blob(blob, _) | Self::Presence(blob) if is_manifest(blob) => &blob.media_type,
            Self::Image(_) | Self::Tag(_) => &images,
            Self::Referrers(..) | Self::Page(_) | Self::ReferrersTag(_) => OCI_INDEX,
            _ => "*/*",
        };
        let mut headers = HeaderMap::new();
        let accept = HeaderValue::from_str(accept).ok();
        headers.extend(accept.map(|accept| (ACCEPT, accept)));
        if let Self::Blob(_, offset @ 1..) = self {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        if let Self::Manifest { media_type, .. } = self {
            let media_type = HeaderValue::from_str(media_type).ok();
            headers.extend(media_type.map(|media_type| (CONTENT_TYPE, media_type)));
        }
        headers
    }
}

fn is_manifest(blob: &Descriptor) -> bool {
    media_type::is_manifest(&blob.media_type) || media_type::is_index(&blob.media_type)
}
