//! What the end-to-end tests stand on: the real binaries under control ([`gateway`]), a service to answer them
//! ([`service`]), raw devices ([`device`]), backends of the test's own ([`peer`]), and a judge of what the devices saw ([`history`]).

pub mod address;
pub mod device;
pub mod dial;
pub mod gateway;
pub mod history;
pub mod http;
pub mod keys;
pub mod metrics;
pub mod peer;
pub mod service;
pub mod sim;
pub mod traffic;
pub mod transport;
pub mod wire;

pub use holdfast_proto::ChannelKind;

/// Makes of each `async fn name(kind: ChannelKind)` a test for each channel: `ws::name` and `wss::name`.
#[macro_export]
macro_rules! over_each_channel {
    ($($test:ident),* $(,)?) => {
        mod ws {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::ChannelKind::Ws).await;
            })*
        }
        mod wss {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::ChannelKind::Wss).await;
            })*
        }
    };
}
