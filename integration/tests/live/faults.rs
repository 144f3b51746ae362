// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One fault at a time, at every call and every system call of a request: an error, a hang, a lost reply, the
//! death of either side, a full disk. After it no tree and no label is wrong, the same request succeeds,
//! and nothing of it is left.
//!
//! All faults of all scenarios are listed, shuffled by a seed, and injected in that order.
//! `RESNAP_FAULTS` is the number for each test, `RESNAP_FAULTS_SEED` the seed of another run; both are printed.

pub(crate) mod commands;
mod fault;
mod image;
pub(crate) mod pods;
mod process;
pub(crate) mod pulls;
mod scenario;
mod state;
mod stored;
mod sweep;
mod syscalls;
