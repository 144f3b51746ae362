// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

mod address;
mod certs;
mod challenge;
mod clients;
mod failure;
mod hosts;
mod request;
mod settings;
mod tls;

pub use settings::Settings;
