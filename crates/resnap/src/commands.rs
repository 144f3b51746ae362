// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The commands.

pub(crate) mod artifacts;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod check_all;
pub(crate) mod convert;
pub(crate) mod daemon_client;
pub(crate) mod doctor;
pub(crate) mod evict;
pub(crate) mod executor;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod images;
pub(crate) mod install;
pub(crate) mod jobs;
pub(crate) mod leases;
pub(crate) mod migrate;
pub(crate) mod remove;
mod signals;
pub(crate) mod snapshotters;
pub(crate) mod unpack;
pub(crate) mod verify;
pub(crate) mod warm;
