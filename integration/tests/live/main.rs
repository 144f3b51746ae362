// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The live suite: resnap, as built, on real daemons.
//!
//! Every test runs on each containerd that has what the test needs; the run ends with a table of
//! who ran what. Pass a part of a name to run some (`cargo test -p resnap-integration --test live
//! -- erofs`). See `suite.rs` for how a test is written.

// A program of its own, not a library: what it says goes to the terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod applier;
mod authority;
mod baked_nodes;
mod blob;
mod cli;
mod command;
mod conformance;
mod connection;
mod crash;
mod credentials;
mod diff_plugin;
mod differ;
mod differential;
mod doctor;
mod drain;
mod errors;
mod examples;
mod faults;
mod features;
mod hostile;
mod install;
mod integrity;
mod kubelet;
mod links;
mod local;
mod metrics;
mod migrate;
mod misbehaving;
mod missing;
mod node;
mod nydus;
mod overview;
mod policy;
mod poll;
mod prewarm;
mod proxy;
mod publish;
mod publisher;
mod referrers;
mod registry;
mod repair;
mod served;
mod signatures;
mod signed;
mod soak;
mod sockets;
mod steering;
mod suite;
mod systemd;
mod tap;
mod together;
mod transparent;
mod unpack;
mod verify;
mod verity;
mod volumes;

use std::process::ExitCode;

use suite::Test;

fn tests() -> Vec<Test> {
    [
        api::TESTS,
        applier::TESTS,
        applier::choice::TESTS,
        applier::tar_index::TESTS,
        authority::TESTS,
        baked_nodes::TESTS,
        cli::TESTS,
        conformance::TESTS,
        crash::killed::TESTS,
        crash::restart::TESTS,
        crash::hangs::TESTS,
        crash::expiry::TESTS,
        crash::stopped::TESTS,
        diff_plugin::TESTS,
        differ::TESTS,
        differential::TESTS,
        doctor::daemon::TESTS,
        doctor::images::TESTS,
        doctor::later::TESTS,
        doctor::leftovers::TESTS,
        doctor::settings::TESTS,
        drain::TESTS,
        errors::TESTS,
        errors::messages::TESTS,
        errors::names::TESTS,
        examples::TESTS,
        faults::commands::TESTS,
        faults::pods::TESTS,
        faults::pulls::TESTS,
        features::TESTS,
        features::refused::TESTS,
        features::pods::TESTS,
        features::format::TESTS,
        hostile::TESTS,
        hostile::layers::TESTS,
        hostile::neighbours::TESTS,
        install::TESTS,
        integrity::TESTS,
        links::TESTS,
        local::TESTS,
        metrics::TESTS,
        migrate::TESTS,
        migrate::refused::TESTS,
        migrate::runs::TESTS,
        nydus::TESTS,
        overview::TESTS,
        policy::TESTS,
        prewarm::TESTS,
        proxy::TESTS,
        publish::TESTS,
        repair::TESTS,
        misbehaving::TESTS,
        missing::TESTS,
        credentials::TESTS,
        referrers::TESTS,
        registry::TESTS,
        signatures::TESTS,
        signed::TESTS,
        soak::load::TESTS,
        sockets::TESTS,
        steering::TESTS,
        systemd::TESTS,
        tap::TESTS,
        tap::through::TESTS,
        together::TESTS,
        transparent::TESTS,
        unpack::TESTS,
        unpack::unusual::TESTS,
        verify::TESTS,
        verity::TESTS,
        volumes::TESTS,
    ]
    .concat()
}

fn main() -> ExitCode {
    suite::main(&tests())
}
