// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults: what goes wrong, at which call.

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
    /// [`ContentLabeler::set_label`](crate::ContentLabeler::set_label).
    SetLabel,
    /// [`Snapshotter::stat`](crate::Snapshotter::stat).
    Stat,
    /// [`Snapshotter::prepare`](crate::Snapshotter::prepare).
    Prepare,
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
    /// [`Leases::list`](crate::Leases::list).
    ListLeases,
    /// [`Leases::resources`](crate::Leases::resources).
    LeaseResources,
    /// [`Containers::list`](crate::Containers::list).
    ListContainers,
    /// A call of [`Introspection`](crate::Introspection).
    Introspect,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 19] = [
        Self::GetImage,
        Self::ListImages,
        Self::ContentInfo,
        Self::OpenContent,
        Self::SetLabel,
        Self::Stat,
        Self::Prepare,
        Self::Commit,
        Self::Remove,
        Self::Apply,
        Self::CreateLease,
        Self::DeleteLease,
        Self::AddResource,
        Self::LabelSnapshot,
        Self::Children,
        Self::ListLeases,
        Self::LeaseResources,
        Self::ListContainers,
        Self::Introspect,
    ];
}

/// Something goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation.
    pub operation: Operation,
    /// Which call of it, the first being 1.
    pub call: usize,
    /// What goes wrong.
    pub effect: Effect,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails and does nothing; an Apply leaves a part of the layer behind.
    Fail(Kind),
    /// It does its work, and its answer is lost.
    LoseAnswer(Kind),
    /// It fails, and the work is done this much later all the same.
    Late(Kind, Duration),
    /// It takes this much longer.
    Delay(Duration),
    /// It never does anything. It is given up after a minute, as the containerd client does; an
    /// Apply, which may take any time, is not.
    Hang,
}
