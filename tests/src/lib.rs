//! What the end-to-end tests stand on: the real binaries under control ([`gateway`]), a service to answer them
//! ([`service`]), raw devices ([`device`]), backends of the test's own ([`peer`]), and a judge of what the devices saw ([`history`]).

pub mod address;
pub mod datagram;
pub mod device;
pub mod dial;
pub mod gateway;
pub mod history;
pub mod http;
pub mod keys;
pub mod lossy;
pub mod metrics;
pub mod network;
pub mod peer;
pub mod python;
pub mod seeds;
pub mod service;
pub mod sim;
pub mod traffic;
pub mod transport;
pub mod wire;

pub use holdfast_proto::ChannelKind;

/// What the devices of a test come over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Ws,
    Wss,
    Udp,
    /// Through a relay that loses each twentieth datagram each way.
    LossyUdp,
    /// `ws`, with devices in Python that share no code with us.
    PythonWs,
}

impl Over {
    pub const ALL: [Self; 5] = [Self::Ws, Self::Wss, Self::Udp, Self::LossyUdp, Self::PythonWs];

    pub fn kind(self) -> ChannelKind {
        match self {
            Self::Ws | Self::PythonWs => ChannelKind::Ws,
            Self::Wss => ChannelKind::Wss,
            Self::Udp | Self::LossyUdp => ChannelKind::Udp,
        }
    }
}

impl From<ChannelKind> for Over {
    fn from(kind: ChannelKind) -> Self {
        match kind {
            ChannelKind::Ws => Self::Ws,
            ChannelKind::Wss => Self::Wss,
            ChannelKind::Udp => Self::Udp,
        }
    }
}

/// Makes of each `async fn name(over: Over)` a test for each channel: `ws::name`, `wss::name`, `udp::name`, `lossy_udp::name` in
/// bad weather, and `python_ws::name` with an independent device.
#[macro_export]
macro_rules! over_each_channel {
    ($($test:ident),* $(,)?) => {
        mod ws {
            $crate::over_one_channel! { Ws: $($test),* }
        }
        mod wss {
            $crate::over_one_channel! { Wss: $($test),* }
        }
        mod udp {
            $crate::over_one_channel! { Udp: $($test),* }
        }
        mod lossy_udp {
            $crate::over_one_channel! { LossyUdp: $($test),* }
        }
        mod python_ws {
            $crate::over_one_channel! { PythonWs: $($test),* }
        }
    };
}

/// The same for channels that begin with an HTTP upgrade: for what is WebSocket's own.
#[macro_export]
macro_rules! over_each_web_socket {
    ($($test:ident),* $(,)?) => {
        mod ws {
            $crate::over_one_channel! { Ws: $($test),* }
        }
        mod wss {
            $crate::over_one_channel! { Wss: $($test),* }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! over_one_channel {
    ($over:ident: $($test:ident),*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            super::$test($crate::Over::$over).await;
        })*
    };
}
