// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tools for tests of backends and of the engine.
//!
//! [`conformance`] has the suites that every backend must pass: the contracts that the engine relies on.
//! [`Simulated`] is a backend in memory with containerd's rules, for tests that are impossible with a
//! real daemon: lost answers, hanging calls, garbage collection at the worst moment. It passes the same
//! suites as a real containerd.

pub mod conformance;
mod fault;
mod image;
mod monitor;
mod simulated;

pub use fault::{Effect, Fault, Operation};
pub use image::{SimulatedImage, SimulatedLayer};
pub use monitor::NoopMonitor;
pub use simulated::{Behaviour, Simulated, SimulatedLease, SimulatedSnapshot};
