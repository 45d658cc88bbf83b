//! A device's WebSocket, whose texts travel as they are or in records.

use anyhow::{Context, Result, bail};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use holdfast_proto::secure::{
    ControlRecord, Opener, RECORD_OVERHEAD, RecordKind, Sealer, TrafficKeys, chunks,
};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::tcp_info;
use crate::protocol::Traffic;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Sends and receives texts.
pub(super) struct Line {
    socket: Socket,
    records: Option<Box<Records>>,
}

struct Records {
    sealer: Sealer,
    opener: Opener,
    /// Chunks of a message that has not ended.
    partial: Vec<u8>,
    /// Pings that are not answered.
    pings: u32,
}

impl Line {
    pub(super) fn plain(socket: Socket) -> Self {
        let records = None;
        Self { socket, records }
    }

    /// After the challenge: whatever follows is in records.
    pub(super) fn sealed(socket: Socket, keys: TrafficKeys) -> Self {
        let records = Some(Box::new(Records {
            sealer: Sealer::new(keys.to_server),
            opener: Opener::new(keys.to_device),
            partial: Vec::new(),
            pings: 0,
        }));
        Self { socket, records }
    }

    /// Queues a text.
    pub(super) async fn feed(&mut self, text: String) -> Result<()> {
        let Some(records) = &mut self.records else {
            return Ok(self.socket.feed(Message::text(text)).await?);
        };
        for (more, data) in chunks(text.as_bytes()) {
            let mut record = Vec::with_capacity(data.len() + RECORD_OVERHEAD);
            records.sealer.seal(RecordKind::Text, more, data, &mut record)?;
            self.socket.feed(Message::binary(record)).await?;
        }
        Ok(())
    }

    /// Sends what is queued, and answers pings.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if let Some(records) = &mut self.records {
            for _ in 0..std::mem::take(&mut records.pings) {
                let (pong, mut record) = (ControlRecord::Pong.encode(), Vec::new());
                records
                    .sealer
                    .seal(RecordKind::Control, false, &pong, &mut record)?;
                self.socket.feed(Message::binary(record)).await?;
            }
        }
        Ok(self.socket.flush().await?)
    }

    pub(super) async fn send(&mut self, text: String) -> Result<()> {
        self.feed(text).await?;
        self.flush().await
    }

    /// The next text; `None` for what is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<String>> {
        let message = self.socket.next().await;
        self.read(message)
    }

    /// The next one that has come already.
    pub(super) fn next_now(&mut self) -> Option<Result<Option<String>>> {
        let message = self.socket.next().now_or_never()?;
        Some(self.read(message))
    }

    /// What its socket has sent and received.
    pub(super) fn traffic(&self) -> Result<Traffic> {
        match self.socket.get_ref() {
            MaybeTlsStream::Plain(stream) => tcp_info::traffic(stream),
            MaybeTlsStream::Rustls(stream) => tcp_info::traffic(stream.get_ref().0),
            _ => bail!("a stream of another kind"),
        }
    }

    fn read(&mut self, message: Option<Result<Message, Error>>) -> Result<Option<String>> {
        match (
            message.context("the server ended the connection")??,
            &mut self.records,
        ) {
            (Message::Text(text), None) => Ok(Some(text.as_str().to_owned())),
            (Message::Binary(record), Some(records)) => records.open(record.into()),
            (Message::Ping(_) | Message::Pong(_), _) => Ok(None),
            (other, _) => bail!("unexpected {other:?}"),
        }
    }
}

impl Records {
    fn open(&mut self, mut record: Vec<u8>) -> Result<Option<String>> {
        let opened = self.opener.open(&mut record)?;
        self.partial
            .extend_from_slice(&record[1..record.len() - (RECORD_OVERHEAD - 1)]);
        match opened.kind {
            RecordKind::Text if opened.more => Ok(None),
            RecordKind::Text => Ok(Some(String::from_utf8(std::mem::take(&mut self.partial))?)),
            RecordKind::Control => match ControlRecord::decode(&std::mem::take(&mut self.partial))? {
                ControlRecord::Ping => {
                    self.pings += 1;
                    Ok(None)
                }
                other => bail!("unexpected {other:?}"),
            },
            RecordKind::Binary => bail!("an unexpected binary message"),
        }
    }
}
