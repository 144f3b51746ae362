// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The source against servers that misbehave.

#[path = "source/bed.rs"]
mod bed;
#[path = "source/credentials.rs"]
mod credentials;
#[path = "source/faults.rs"]
mod faults;
#[path = "source/hosts.rs"]
mod hosts;
#[path = "source/server.rs"]
mod server;
#[path = "source/tls.rs"]
mod tls;
