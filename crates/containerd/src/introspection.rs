// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Introspection, with messages defined here: those of containerd-client 0.9 are of containerd 2.1 and
//! lack `Platform.os_features`, and prost drops unknown fields.

use std::collections::HashMap;

use async_trait::async_trait;
use http::uri::PathAndQuery;
use resnap_core::{Introspection, Platform, Result, SnapshotterInfo};
use tonic::Status;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::connection::{Connection, MAX_MESSAGE_BYTES};

/// `containerd.services.introspection.v1.PluginsRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct PluginsRequest {
    /// Field 1.
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

/// `containerd.services.namespaces.v1.ListNamespacesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct NamespacesResponse {
    /// Field 1.
    #[prost(message, repeated, tag = "1")]
    namespaces: Vec<NamespaceMessage>,
}

/// `containerd.services.namespaces.v1.Namespace`, without its labels.
#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceMessage {
    /// Field 1.
    #[prost(string, tag = "1")]
    name: String,
}

/// `containerd.services.introspection.v1.PluginsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct PluginsResponse {
    /// Field 1.
    #[prost(message, repeated, tag = "1")]
    plugins: Vec<PluginMessage>,
}

/// `containerd.services.introspection.v1.Plugin`, without `type` (1) and `requires` (3).
#[derive(Clone, PartialEq, prost::Message)]
struct PluginMessage {
    /// Field 2.
    #[prost(string, tag = "2")]
    id: String,
    /// Field 4.
    #[prost(message, repeated, tag = "4")]
    platforms: Vec<PlatformMessage>,
    /// Field 5.
    #[prost(map = "string, string", tag = "5")]
    exports: HashMap<String, String>,
    /// Field 6.
    #[prost(string, repeated, tag = "6")]
    capabilities: Vec<String>,
    /// Field 7.
    #[prost(message, optional, tag = "7")]
    init_error: Option<StatusMessage>,
}

/// `containerd.types.Platform`.
#[derive(Clone, PartialEq, prost::Message)]
struct PlatformMessage {
    /// Field 1.
    #[prost(string, tag = "1")]
    os: String,
    /// Field 2.
    #[prost(string, tag = "2")]
    architecture: String,
    /// Field 3.
    #[prost(string, tag = "3")]
    variant: String,
    /// Field 4.
    #[prost(string, tag = "4")]
    os_version: String,
    /// Field 5, since containerd 2.3.
    #[prost(string, repeated, tag = "5")]
    os_features: Vec<String>,
}

/// `google.rpc.Status`, without `code` (1) and `details` (3).
#[derive(Clone, PartialEq, prost::Message)]
struct StatusMessage {
    /// Field 2.
    #[prost(string, tag = "2")]
    message: String,
}

/// `containerd.services.introspection.v1.ServerResponse`, without the process (2, 3) and the
/// deprecations (4).
#[derive(Clone, PartialEq, prost::Message)]
struct ServerResponse {
    /// Field 1.
    #[prost(string, tag = "1")]
    uuid: String,
}

/// `VersionResponse`, without the revision (2).
#[derive(Clone, PartialEq, prost::Message)]
struct VersionResponse {
    #[prost(string, tag = "1")]
    version: String,
}

const VERSION: PathAndQuery =
    PathAndQuery::from_static("/containerd.services.version.v1.Version/Version");
const SERVER: PathAndQuery =
    PathAndQuery::from_static("/containerd.services.introspection.v1.Introspection/Server");
const NAMESPACES: PathAndQuery =
    PathAndQuery::from_static("/containerd.services.namespaces.v1.Namespaces/List");
const PLUGINS: PathAndQuery =
    PathAndQuery::from_static("/containerd.services.introspection.v1.Introspection/Plugins");

/// The type of differs.
const DIFFER: &str = "io.containerd.differ.v1";

#[async_trait]
impl Introspection for Connection {
    async fn content_root(&self) -> Result<Option<String>> {
        let kind = "io.containerd.content.v1";
        let plugins = plugins(self, "find the content of", kind).await?;
        // Other content stores may have another layout.
        let mut local = plugins.into_iter().filter(|plugin| plugin.id == "content");
        Ok(local
            .next()
            .and_then(|mut local| local.exports.remove("root")))
    }

    async fn snapshotters(&self) -> Result<Vec<SnapshotterInfo>> {
        let kind = "io.containerd.snapshotter.v1";
        let plugins = plugins(self, "list snapshotters of", kind).await?;
        let mut snapshotters: Vec<_> = plugins.into_iter().map(from_message).collect();
        snapshotters.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(snapshotters)
    }

    async fn identity(&self) -> Result<String> {
        let answer: ServerResponse = introspect(self, "identify", SERVER, ()).await?;
        Ok(answer.uuid)
    }
}

/// See [`Client::diff_plugins`](crate::Client::diff_plugins).
pub(crate) async fn diff_plugins(connection: &Connection) -> Result<Vec<DiffPlugin>> {
    let plugins = plugins(connection, "list differs of", DIFFER).await?;
    // The differs of containerd itself export no address.
    let plugin = |mut plugin: PluginMessage| {
        let address = plugin.exports.remove("address")?;
        Some(DiffPlugin {
            name: plugin.id,
            address,
        })
    };
    Ok(plugins.into_iter().filter_map(plugin).collect())
}

/// See [`Client::differs`](crate::Client::differs).
pub(crate) async fn differs(connection: &Connection) -> Result<Vec<String>> {
    let plugins = plugins(connection, "list differs of", DIFFER).await?;
    let working = plugins
        .into_iter()
        .filter(|plugin| plugin.init_error.is_none());
    Ok(working.map(|plugin| plugin.id).collect())
}

/// A differ of containerd's configuration that is another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffPlugin {
    /// The name in the configuration.
    pub name: String,
    /// The path of its socket.
    pub address: String,
}

/// See [`Client::namespaces`](crate::Client::namespaces).
pub(crate) async fn namespaces(connection: &Connection) -> Result<Vec<String>> {
    let answer: NamespacesResponse =
        introspect(connection, "list the namespaces of", NAMESPACES, ()).await?;
    let names = answer
        .namespaces
        .into_iter()
        .map(|namespace| namespace.name);
    Ok(names.collect())
}

/// See [`Client::version`](crate::Client::version).
pub(crate) async fn version(connection: &Connection) -> Result<String> {
    let answer: VersionResponse =
        introspect(connection, "ask for the version of", VERSION, ()).await?;
    Ok(answer.version)
}

/// Returns the plugins of one type.
async fn plugins(
    connection: &Connection,
    operation: &'static str,
    kind: &str,
) -> Result<Vec<PluginMessage>> {
    let message = PluginsRequest {
        filters: vec![format!("type=={kind}")],
    };
    let answer: PluginsResponse = introspect(connection, operation, PLUGINS, message).await?;
    Ok(answer.plugins)
}

/// Makes a call that needs no namespace.
async fn introspect<Q, A>(
    connection: &Connection,
    operation: &'static str,
    path: PathAndQuery,
    message: Q,
) -> Result<A>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(connection.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let call = async {
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<Q, A>::default();
        grpc.unary(tonic::Request::new(message), path, codec).await
    };
    connection.call(operation, "containerd", call).await
}

fn from_message(mut plugin: PluginMessage) -> SnapshotterInfo {
    SnapshotterInfo {
        name: plugin.id,
        capabilities: plugin.capabilities,
        platforms: plugin
            .platforms
            .into_iter()
            .map(|platform| Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
                os_version: platform.os_version,
                os_features: platform.os_features,
            })
            .collect(),
        root: plugin.exports.remove("root"),
        failure: plugin.init_error.map(|error| error.message),
    }
}
