// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The source and the destination against servers that misbehave.

#![allow(clippy::unwrap_used)]

mod bed;
mod credentials;
mod faults;
mod hosts;
mod log;
mod push;
mod pushed;
mod referrers;
mod resolve;
mod server;
mod tls;
