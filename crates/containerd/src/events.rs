// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Events (containerd `api/services/events/v1/events.proto`).

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use futures::{Stream, TryFutureExt as _, TryStreamExt as _};
use prost::Message;
use resnap_core::{Result, Scope};

use crate::connection::{Connection, request};
use crate::status::error;

/// `ImageCreate` and `ImageUpdate` (containerd `api/events/image.proto`), without the labels (2).
#[derive(Clone, PartialEq, prost::Message)]
struct ImageChange {
    #[prost(string, tag = "1")]
    name: String,
}

/// See [`Client::image_changes`](crate::Client::image_changes).
pub(crate) fn image_changes(
    connection: &Connection,
    namespace: &str,
) -> impl Stream<Item = Result<String>> + Send + use<> {
    const WATCH: &str = "watch the images of";
    let filter = |topic| format!("topic=={topic:?},namespace=={namespace:?}");
    let message = SubscribeRequest {
        filters: ["/images/create", "/images/update"].map(filter).into(),
    };
    let request = request(&Scope::new(namespace), message);
    let connection = connection.clone();
    let namespace = namespace.to_owned();
    let failed = move |status| error(WATCH, namespace.as_str(), status);
    let failed_later = failed.clone();
    // containerd answers only with the first event, which may take hours.
    let envelopes = async move {
        let mut client = EventsClient::new(connection.channel());
        let answer = client.subscribe(request?).await.map_err(failed)?;
        Ok(answer.into_inner().map_err(failed_later))
    };
    let names = envelopes.try_flatten_stream();
    names.try_filter_map(|envelope| {
        let event = envelope.event.unwrap_or_default();
        // Other messages are ignored.
        let change = ImageChange::decode(event.value.as_slice()).ok();
        std::future::ready(Ok(change.map(|change| change.name)))
    })
}
