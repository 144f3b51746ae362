// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Missing blobs of images, and the manifests that refer to images, from registries; and images and artifacts to
//! them ([`RegistryDestination`]).
//!
//! [`RegistrySource`] is the source `registry` of [`resnap_core::BlobSource`]. It asks the repository of
//! the image's reference, then those that the image's blobs were pulled from before.
//!
//! # Hosts
//! A registry is served by the hosts of containerd's `hosts.toml`, in its order: those with the
//! capability `pull`, then `server`, or the registry itself. Its keys `ca`, `client` (the first pair),
//! `skip_verify`, `override_path`, `header` and `dial_timeout` are heeded, others are ignored. Without
//! the file, Docker's certificate files count. Mirrors get `?ns=REGISTRY`. All hosts are asked once
//! before one is asked again. A wrong file fails its registry; containerd ignores it.
//!
//! # Credentials
//! They are sent when a host asks, in this order: that of the pod's own pull, those of Docker's config
//! files and helpers, none. A pull's credential is for the registry itself, never for a mirror; a mirror
//! gets those that the config files have for its own host. They leave for the host that asked (by plain
//! HTTP if `hosts.toml` says so, or on this machine), or for the token server that it names by HTTPS or
//! on this machine, and never
//! - for another scheme, host or port that a redirect leads to, as do the headers of `hosts.toml` and
//!   client certificates;
//! - for the addresses in a descriptor (`urls`), which are tried last;
//! - for the log.
//!
//! Tokens for pulling are not kept beyond a transfer. What this crate holds of credentials is zeroed when it is
//! dropped; buffers of HTTP and TLS are not.
//!
//! # Transfers
//! A broken body is resumed by a range, or by dropping what was delivered where a server ignores ranges.
//! Five attempts without one new byte end it; the statuses 408, 429, 500, 502, 503 and 504, failed
//! connections and broken bodies are worth an attempt, after a back-off or the server's `Retry-After` (at
//! most 60 s). There is no limit on the time of a transfer, but on the time without a byte: then the
//! stream ends, so that what waits for the blob can go on at once. Everything stops on drop.
//!
//! # Referrers
//! The manifests that refer to an image are asked of the same hosts with the same credentials, until one lists
//! some: by the referrers API of the distribution specification 1.1, or by the tag that clients keep where a
//! registry lists none (404). A mirror without referrers hides none of the registry. Artifact types are
//! checked here, since registries may ignore the filter. Further pages are asked of the same host only.
//!
//! # Tags
//! [`RegistrySource::resolve`] asks the same hosts in the same way for the index or manifest of a tag.
//!
//! # Pushing
//! A repository is pushed to at one host: the first of `hosts.toml` with the capability `push`, which a mirror has
//! only if it is listed. Credentials are those of Docker's config files and helpers; one token serves all requests
//! of a [`RegistryDestination`] until it expires. What is there is not pushed again. A blob is put in one piece, which
//! breaks off before its last bytes if they are not those of its digest, and is sent once; all other requests are
//! repeated like those for pulling. An address of an upload at another host gets no credentials.
//!
//! A registry that does not answer with `OCI-Subject` lists no referrers. The index under their tag is kept for it.
//! Registries have no way to change it in one step: of two processes that add referrers of one image at the same
//! moment, one may have to do so again.
//!
//! # Absent
//! Bytes are not verified here; the caller does. HTTP/2 is not used: one connection per blob has more
//! throughput and fails alone. `oci-client` is not used, since it follows redirects, retries and
//! authenticates on its own terms and does not read `hosts.toml`.

mod address;
mod asked;
mod certs;
mod challenge;
mod clients;
mod docker_config;
mod document;
mod failure;
mod helper;
mod hosts;
mod link;
mod listing;
mod push;
mod reference;
mod referrers;
mod refusal;
mod rejections;
mod request;
mod resolve;
mod session;
mod settings;
mod source;
mod stored;
mod tls;
mod token;
mod transfer;
mod upload;

pub use push::RegistryDestination;
pub use settings::Settings;
pub use source::RegistrySource;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
