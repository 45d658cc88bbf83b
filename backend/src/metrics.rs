//! The backend's metrics: one registry, with every name beginning `holdfast_backend_`.
//!
//! Each subsystem registers its own metrics beside its code: a struct with `fn register(registry: &mut Registry) -> Self`.
//! When all have done so, the registry is shared read-only with the API, which renders it.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The content type of [`render`]'s text (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What was built.
pub static BUILD: LazyLock<String> =
    LazyLock::new(|| holdfast_proto::build_name(env!("CARGO_PKG_VERSION"), option_env!("HOLDFAST_BUILD")));

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// A registry whose only metric is `holdfast_backend_build_info`.
pub fn new_registry() -> Registry {
    let mut registry = Registry::with_prefix("holdfast_backend");
    let info = Info::new(BuildLabels {
        version: BUILD.as_str(),
    });
    registry.register("build", "What was built", info);
    registry
}

/// All metrics as text. Formatting into memory cannot fail; a collector that does leaves the text cut short.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        tracing::error!(%error, "a metric could not be rendered");
    }
    text
}

/// Bucket bounds for durations, in seconds: 100 µs doubling to about 26 s.
pub fn duration_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.000_1, 2.0, 19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_the_text_is_closed() {
        let text = render(&new_registry());
        assert!(text.contains("holdfast_backend_build_info{version="), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
