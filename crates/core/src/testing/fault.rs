// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of single calls.

use std::time::Duration;

use crate::Kind;

/// A call of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`Images::get`](crate::Images::get).
    GetImage,
    /// [`Images::list`](crate::Images::list).
    ListImages,
    /// [`ContentReader::info`](crate::ContentReader::info).
    ContentInfo,
    /// [`ContentReader::open`](crate::ContentReader::open).
    OpenContent,
    /// [`ContentWriter::ingest`](crate::ContentWriter::ingest).
    OpenIngest,
    /// [`Ingest::write`](crate::Ingest::write).
    WriteIngest,
    /// [`Ingest::commit`](crate::Ingest::commit).
    CommitIngest,
    /// [`ContentWriter::abort`](crate::ContentWriter::abort).
    AbortIngest,
    /// [`ContentLabeler::set_label`](crate::ContentLabeler::set_label).
    SetLabel,
    /// [`ContentLabeler::remove_label`](crate::ContentLabeler::remove_label).
    RemoveLabel,
    /// [`ContentLabeler::list`](crate::ContentLabeler::list).
    ListContent,
    /// [`Snapshotter::stat`](crate::Snapshotter::stat).
    Stat,
    /// [`Snapshotter::prepare`](crate::Snapshotter::prepare).
    Prepare,
    /// [`Snapshotter::view`](crate::Snapshotter::view).
    View,
    /// [`Snapshotter::commit`](crate::Snapshotter::commit).
    Commit,
    /// [`Snapshotter::remove`](crate::Snapshotter::remove).
    Remove,
    /// [`Applier::apply`](crate::Applier::apply).
    Apply,
    /// [`Leases::create`](crate::Leases::create).
    CreateLease,
    /// [`Leases::delete`](crate::Leases::delete).
    DeleteLease,
    /// [`Leases::add_resource`](crate::Leases::add_resource).
    AddResource,
    /// [`Snapshotter::set_labels`](crate::Snapshotter::set_labels).
    LabelSnapshot,
    /// [`Snapshotter::children`](crate::Snapshotter::children).
    Children,
    /// [`Snapshotter::list`](crate::Snapshotter::list).
    ListSnapshots,
    /// [`Snapshotter::usage`](crate::Snapshotter::usage).
    SnapshotUsage,
    /// [`Leases::list`](crate::Leases::list).
    ListLeases,
    /// [`Leases::resources`](crate::Leases::resources).
    LeaseResources,
    /// [`Leases::collect_garbage`](crate::Leases::collect_garbage).
    CollectGarbage,
    /// [`Containers::list`](crate::Containers::list).
    ListContainers,
    /// A call of [`Introspection`](crate::Introspection).
    Introspect,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 29] = [
        Self::GetImage,
        Self::ListImages,
        Self::ContentInfo,
        Self::OpenContent,
        Self::OpenIngest,
        Self::WriteIngest,
        Self::CommitIngest,
        Self::AbortIngest,
        Self::SetLabel,
        Self::RemoveLabel,
        Self::ListContent,
        Self::Stat,
        Self::Prepare,
        Self::View,
        Self::Commit,
        Self::Remove,
        Self::Apply,
        Self::CreateLease,
        Self::DeleteLease,
        Self::AddResource,
        Self::LabelSnapshot,
        Self::Children,
        Self::ListSnapshots,
        Self::SnapshotUsage,
        Self::ListLeases,
        Self::LeaseResources,
        Self::CollectGarbage,
        Self::ListContainers,
        Self::Introspect,
    ];
}

/// A fault of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation.
    pub operation: Operation,
    /// The number of the call, the first being 1.
    pub call: usize,
    /// The effect.
    pub effect: Effect,
}

/// The effect of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The call fails and does nothing; an Apply leaves a part of the layer behind.
    Fail(Kind),
    /// The call does its work, and its answer is lost.
    LoseAnswer(Kind),
    /// The call fails, and its work is done after this delay nevertheless.
    Late(Kind, Duration),
    /// The call takes this much longer.
    Delay(Duration),
    /// The call hangs. It times out after a minute, like calls of the containerd client; an Apply has no
    /// time limit.
    Hang,
}
