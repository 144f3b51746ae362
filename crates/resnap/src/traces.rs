// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Traces for an OpenTelemetry collector, over OTLP and gRPC.
//!
//! The environment names the collector, as the OpenTelemetry specification says ("OpenTelemetry Protocol
//! Exporter"): `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or else `OTEL_EXPORTER_OTLP_ENDPOINT`. Without them
//! nothing is exported.

use std::env;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::{Builder, Runtime};
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// The exporter of this process.
static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// An exporter of spans.
struct Exporter {
    provider: SdkTracerProvider,
    /// The connection to the collector is driven by this runtime.
    _runtime: Runtime,
}

impl Exporter {
    fn new(endpoint: &str) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .with_context(|| format!("export traces to {endpoint:?}"))?;
        drop(entered);
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("resnap");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self {
            provider,
            _runtime: runtime,
        })
    }

    /// Returns a layer that exports the spans of resnap's own crates.
    fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("resnap"))
            .with_filter(Targets::new().with_target("resnap", LevelFilter::INFO))
    }
}

/// Adds the export of spans to a subscriber, if the environment names a collector.
///
/// # Errors
/// The collector's address is invalid.
pub(crate) fn layer<S>() -> Result<Option<impl Layer<S>>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let endpoint = ENDPOINTS.iter().find_map(|name| env::var(name).ok());
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    let exporter = Exporter::new(&endpoint)?;
    Ok(Some(EXPORTER.get_or_init(|| exporter).layer()))
}

/// Sends the spans that have not been sent yet. Waits a few seconds at most.
pub(crate) fn flush() {
    if let Some(exporter) = EXPORTER.get()
        && let Err(error) = exporter.provider.shutdown()
    {
        tracing::warn!(%error, "spans were not exported");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::net::TcpListener;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Accepts one call as a collector, and returns its path and body.
    async fn collect(listener: TcpListener) -> (String, Vec<u8>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let path = request.uri().path().to_owned();
        let (mut stream, mut body) = (request.into_body(), Vec::new());
        while let Some(piece) = stream.data().await {
            body.extend_from_slice(&piece.unwrap());
        }
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut answer = respond.send_response(response, false).unwrap();
        answer.send_data(vec![0; 5].into(), false).unwrap();
        let trailers = [("grpc-status", "0")].into_iter();
        let trailers = trailers.map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()));
        answer.send_trailers(trailers.collect()).unwrap();
        (path, body)
    }

    #[test]
    fn spans_of_our_crates_reach_a_collector() {
        let (address, addresses) = mpsc::channel();
        let collector = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap()).unwrap();
                let collected = collect(listener).await;
                tokio::task::yield_now().await;
                collected
            })
        });
        let endpoint = format!("http://{}", addresses.recv().unwrap());
        let exporter = Exporter::new(&endpoint).unwrap();
        let subscriber = tracing_subscriber::registry().with(exporter.layer());
        tracing::subscriber::with_default(subscriber, || {
            drop(tracing::info_span!("unpack", image = "web:1").entered());
            drop(tracing::info_span!(target: "h2", "frame").entered());
        });
        // The collector may end before its answer has arrived.
        let _ = exporter.provider.shutdown();
        let (path, body) = collector.join().unwrap();
        assert_eq!(
            path,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        );
        let has = |text: &str| body.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has("unpack") && has("image") && has("web:1") && has("resnap"));
        assert!(!has("frame"), "only spans of resnap are exported");
    }
}
