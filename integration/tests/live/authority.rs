// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Clients that name no host, but a socket or nothing, as containerd takes them.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::python::with_grpc;

use crate::node::Node;
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Containerd: authority_of_any_kind_is_accepted,
}

/// Calls a method twice for each authority, on one connection each, and prints what comes of it.
const SCRIPT: &str = r#"
import sys, grpc
socket, method = sys.argv[1:]
same = lambda data: data
for authority in [None, "localhost", "/run/x.sock", "unix:/run/x.sock", "a b", "bücher", "[::1"]:
    options = [] if authority is None else [("grpc.default_authority", authority)]
    with grpc.insecure_channel("unix:" + socket, options=options) as channel:
        call = channel.unary_unary(method, request_serializer=same, response_deserializer=same)
        for _ in range(2):
            try:
                answer = "%d bytes" % len(call(b"", timeout=20, metadata=[("x-some", "1")]))
            except grpc.RpcError as error:
                answer = "%s: %s" % (error.code(), error.details())
            print(authority, "->", answer)
"#;

fn authority_of_any_kind_is_accepted(node: &Node) -> Result<()> {
    let served = Served::start(node)?;
    let api = served.dir.join("api.sock");
    for socket in [&served.socket, &api] {
        eventually("resnap serves", DEADLINE, || {
            Ok(UnixStream::connect(socket).is_ok())
        })?;
    }
    let version = "/runtime.v1.RuntimeService/Version";
    let stock = asked(node.containerd.socket(), version)?;
    ensure!(asked(&served.socket, version)? == stock, "{stock}");
    let info = asked(&api, "/resnap.v1.ResnapService/GetInfo")?;
    for (socket, answers) in [("stock", &stock), ("api", &info)] {
        let good = answers.lines().filter(|line| line.ends_with(" bytes"));
        ensure!(good.count() == 14, "{socket}: {answers}");
    }
    served.stop()
}

fn asked(socket: &Path, method: &str) -> Result<String> {
    let path = socket.to_str().context("a socket's path is no text")?;
    with_grpc(SCRIPT, &[path, method])
}
