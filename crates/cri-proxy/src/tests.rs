// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The proxy, in front of a server that answers as containerd does.

mod ahead;
mod calls;
mod clients;
mod containerd;
mod messages;
mod node;
mod preflight;
mod pulls;
mod service;
