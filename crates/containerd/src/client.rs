// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The client of one containerd.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use resnap_core::{Ports, Result, Scope};

use crate::connection::Connection;
use crate::diff_server::{DiffServer, LayerWriter};
use crate::ingest::IngestInfo;
use crate::introspection::DiffPlugin;
use crate::{events, ingest, introspection};

/// The address at which containerd listens by default.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";

/// A client of containerd, cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Connection);

impl Client {
    /// Connects to the socket at `address`, an absolute path with or without a leading `unix://`.
    ///
    /// # Errors
    /// [`Kind::Unavailable`](resnap_core::Kind::Unavailable) if nothing listens there,
    /// [`Kind::PermissionDenied`](resnap_core::Kind::PermissionDenied) if this process may not connect,
    /// [`Kind::InvalidArgument`](resnap_core::Kind::InvalidArgument) if the path cannot be that of a socket.
    pub async fn connect(address: &str) -> Result<Self> {
        Connection::connect(address).await.map(Self)
    }

    /// Returns this client with another time limit for each call. The default is 60 s. Calls whose
    /// duration depends on the image have no limit: applying a layer and reading a blob.
    #[must_use]
    pub fn with_call_timeout(self, limit: Duration) -> Self {
        Self(self.0.with_call_timeout(limit))
    }

    /// Returns all ports over this connection.
    pub fn ports(&self) -> Ports {
        let connection = Arc::new(self.0.clone());
        Ports {
            images: connection.clone(),
            content: connection.clone(),
            labeler: connection.clone(),
            writer: connection.clone(),
            snapshotters: connection.clone(),
            applier: connection.clone(),
            leases: connection.clone(),
            containers: connection.clone(),
            introspection: connection,
        }
    }

    /// Returns the names of image records as they are created or updated, from the first poll on.
    /// containerd drops events without a subscriber, and ends the stream when it stops.
    ///
    /// # Errors
    /// The last item of the stream is the error that ended it.
    pub fn image_changes(
        &self,
        namespace: &str,
    ) -> impl Stream<Item = Result<String>> + Send + use<> {
        events::image_changes(&self.0, namespace)
    }

    /// Returns a server of containerd's differ service, for this containerd to ask it. What `writer` leaves
    /// goes to containerd's own service.
    pub fn diff_server(&self, writer: Arc<dyn LayerWriter>) -> DiffServer {
        DiffServer::new(self.0.clone(), writer)
    }

    /// Returns the differs in containerd's configuration that are other programs. That containerd lists one
    /// does not mean that it answers.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn diff_plugins(&self) -> Result<Vec<DiffPlugin>> {
        introspection::diff_plugins(&self.0).await
    }

    /// Returns the names of the differs that work, in no particular order.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn differs(&self) -> Result<Vec<String>> {
        introspection::differs(&self.0).await
    }

    /// Returns the ingests of a namespace, in no particular order.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn ingests(&self, scope: &Scope) -> Result<Vec<IngestInfo>> {
        ingest::list(&self.0, scope).await
    }

    /// Returns the names of all namespaces, in no particular order.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn namespaces(&self) -> Result<Vec<String>> {
        introspection::namespaces(&self.0).await
    }

    /// Returns the version that containerd reports (containerd
    /// `api/services/version/v1/version.proto`).
    ///
    /// # Errors
    /// Those of any call.
    pub async fn version(&self) -> Result<String> {
        introspection::version(&self.0).await
    }
}
