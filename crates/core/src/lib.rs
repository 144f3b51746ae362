// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Domain types, the error type and the backend traits (ports) that all resnap crates share.
//!
//! A *port* is a narrow trait through which the engine reaches a containerd, or a substitute for one:
//! images, content, snapshots, leases, the differ and introspection. Backends implement ports, and the
//! engine depends on nothing else of a backend.
//!
//! Four different things are written as `sha256:…`: the digest of a (compressed) layer blob, the digest
//! of its uncompressed tar ([`DiffId`]), the identity of a layer on top of its parents ([`ChainId`],
//! also the name of its committed snapshot) and the digest of a manifest or config. Mixing them up is a
//! common mistake, so diff IDs and chain IDs have types of their own.
//!
//! This crate has no I/O, no runtime and no gRPC. The feature `testing` adds the conformance suites of
//! the ports and a simulated backend.

mod apply;
mod artifact;
mod chain_view;
mod credential;
mod descriptor;
mod destination;
mod digest;
pub mod erofs_layer;
mod error;
mod index_document;
mod integrity;
pub mod labels;
pub mod media_type;
mod mount;
mod pod;
mod ports;
mod profile;
mod read;
mod referrer;
mod repository;
mod scope;
mod service;
mod signed_root;
mod snapshot;
mod source;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod verified;

pub use apply::{
    Applied, Applier, ApplyMonitor, ApplyPermit, Batch, BatchApplier, BatchLayer, Inspection,
    LayerCopy, Preparer, Stage, StageTiming, in_batch,
};
pub use artifact::{ArtifactSet, Bundle, BundleFault, IndexedLayer, LayerArtifact, Payload};
pub use chain_view::ChainView;
pub use credential::{Credential, PullCredentials, Secret};
pub use descriptor::{Descriptor, null_is_default};
pub use destination::Destination;
pub use digest::{ChainId, DiffId, Digest, Hasher, InvalidDigest};
pub use error::{Error, Kind, Result, error_chain};
pub use index_document::IndexDocument;
pub use integrity::{ErofsMode, Integrity, Proof, ProofOrigin, ProofSignature};
pub use labels::Labels;
pub use mount::Mount;
pub use pod::PodId;
pub use ports::{
    Container, Containers, ContentInfo, ContentLabeler, ContentReader, ContentWriter, Image,
    Images, Ingest, Introspection, LargeReadPermit, LeaseInfo, Leases, Ports, Resource,
    Snapshotter, SnapshotterInfo, Snapshotters, Work,
};
pub use profile::{EROFS_FEATURE, LabelRequirement, LabeledLayers, Profile, Profiles, Volumes};
pub use read::{LargeRead, read_verified, work_on};
pub use referrer::{Referrer, ReferrerList};
pub use repository::Repository;
pub use resnap_platforms::Platform;
pub use scope::{LeaseId, Scope};
pub use service::{
    EnsureProgress, EnsureRequest, ManifestPreference, NotReady, UnpackService, major_minor,
    unpacks_without_parents, version_parts,
};
pub use signed_root::{LayerToSeal, SignedRoot, TarIndex};
pub use snapshot::{SnapshotInfo, SnapshotKey, SnapshotKind, Usage};
pub use source::{BlobSource, MissingBlob};
pub use stream::ByteStream;
pub use verified::{Differences, Evidence, LayerToVerify, Verified};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
