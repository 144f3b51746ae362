// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Connections that tonic serves, with the credentials of their peers.

use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::AnyAuthority;

impl Connected for AnyAuthority<UnixStream> {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.get_ref().connect_info()
    }
}
