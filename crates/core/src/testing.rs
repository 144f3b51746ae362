// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What backends and the engine are tested with.
//!
//! [`conformance`] holds the suites that every backend passes: what the engine relies on.
//! [`Simulated`] is a backend in memory with containerd's rules, for tests that no real daemon
//! allows: answers get lost, calls hang, garbage is collected at the worst moment. It passes the
//! same suites as a real containerd, and so is no idealised one.

pub mod conformance;
mod fault;
mod image;
mod monitor;
mod simulated;

pub use fault::{Effect, Fault, Operation};
pub use image::{SimulatedImage, SimulatedLayer};
pub use monitor::NoopMonitor;
pub use simulated::{Behaviour, Simulated, SimulatedLease, SimulatedSnapshot};
