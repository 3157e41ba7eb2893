//! Traces of requests for an OpenTelemetry collector: `--enable-distributed-tracing`.
//!
//! One span for a call, as the gRPC instrumentation of OpenTelemetry names it, and inside it one with
//! etcd's name and attributes for what the call does. While tracing is off, all that happens is a
//! relaxed load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    FutureExt, Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tonic::Code;

/// What the options say about tracing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    /// `host:port` of the collector.
    pub address: String,
    /// Name of the service in traces.
    pub service_name: String,
    /// Id of this member in traces; empty: none.
    pub instance_id: String,
    /// Traces to keep of a million that no caller has decided about.
    pub samples_per_million: u32,
}

/// Traces are divided by this: the option counts in millionths.
const MILLION: f64 = 1_000_000.0;
/// How long a stopping member waits for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);
/// The instrumentation's name in traces.
const SCOPE: &str = "go.etcd.io/etcd";

static ON: AtomicBool = AtomicBool::new(false);
static STATE: OnceLock<State> = OnceLock::new();

struct State {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// Starts to send traces. To be called once, inside the runtime on which the connection to the
/// collector shall live. A collector that cannot be reached costs its traces and nothing else.
///
/// # Errors
/// The address is none.
pub fn start(options: &TraceOptions) -> Result<(), ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(format!("http://{}", options.address))
        .build()?;
    let mut resource = Resource::builder_empty().with_service_name(options.service_name.clone());
    if !options.instance_id.is_empty() {
        let id = KeyValue::new("service.instance.id", options.instance_id.clone());
        resource = resource.with_attribute(id);
    }
    let root = match options.samples_per_million {
        0 => Sampler::AlwaysOff,
        samples => Sampler::TraceIdRatioBased(f64::from(samples) / MILLION),
    };
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .with_sampler(Sampler::ParentBased(Box::new(root)))
        .build();
    let state = State {
        tracer: provider.tracer(SCOPE),
        provider,
        propagator: TraceContextPropagator::new(),
    };
    if STATE.set(state).is_ok() {
        ON.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends what is left. For the end of the process.
pub fn stop() {
    if let Some(state) = STATE.get()
        && let Err(error) = state.provider.shutdown_with_timeout(FLUSH_TIMEOUT)
    {
        tracing::warn!(%error, "the last traces were not sent");
    }
}

/// Whether traces are sent.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The span of a call; ended by [`CallSpan::end`].
pub struct CallSpan(Context);

impl CallSpan {
    /// Begins the span of a call, below the caller's if it sent one. `None` while tracing is off.
    pub fn start(path: &'static str, headers: &HeaderMap) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let state = STATE.get()?;
        let parent = state.propagator.extract(&Headers(headers));
        let name = path.trim_start_matches('/');
        let builder = state
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.method", name),
                KeyValue::new("rpc.system.name", "grpc"),
            ]);
        let span = state.tracer.build_with_context(builder, &parent);
        Some(Self(parent.with_span(span)))
    }

    /// The context in which the call is to be answered.
    pub fn context(&self) -> Context {
        self.0.clone()
    }

    /// Ends the span.
    pub fn end(&self, code: Code) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new(
            "rpc.response.status_code",
            canonical_name(code),
        ));
        // The others are the client's fault.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            span.set_status(Status::error(canonical_name(code)));
        }
        span.end();
    }
}

/// Runs a part of a call inside a span of its own.
pub async fn in_span<F: Future>(
    name: &'static str,
    attributes: impl FnOnce() -> Vec<KeyValue>,
    future: F,
) -> F::Output {
    let Some(state) = is_on().then(|| STATE.get()).flatten() else {
        return future.await;
    };
    let builder = state
        .tracer
        .span_builder(name)
        .with_attributes(attributes());
    let span = state.tracer.build(builder);
    if !span.is_recording() {
        return future.await;
    }
    let context = Context::current_with_span(span);
    let output = Box::pin(future.with_context(context.clone())).await;
    context.span().end();
    output
}

/// Notes something that happened in the current span.
pub fn event(name: &'static str) {
    if is_on() {
        Context::map_current(|context| context.span().add_event(name, Vec::new()));
    }
}

/// Bytes of a request as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const fn canonical_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
