//! An echo as small as a driver can be: one connection after the other, on one scratch.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use super::super::{ChannelError, ChannelEvent, Scratch, ScratchLimits, StreamChannel};

/// The suite's longest message has 16 MiB.
const LIMITS: ScratchLimits = ScratchLimits {
    max_message_bytes: 16 << 20,
    budget_bytes: 64 << 20,
};
/// How long the peer may take to read what ends its connection.
const LINGER: Duration = Duration::from_secs(2);

/// Echoes until the process ends; gives the port.
pub(super) fn start<C: StreamChannel>(open: impl Fn(&mut Scratch) -> C + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut scratch = Scratch::new(LIMITS);
        for stream in listener.incoming() {
            let channel = open(&mut scratch);
            // Half of the suite is about peers that break off.
            let _ = serve(stream.unwrap(), &mut scratch, channel);
            scratch.reset();
        }
    });
    port
}

fn serve<C: StreamChannel>(mut stream: TcpStream, scratch: &mut Scratch, mut channel: C) -> io::Result<()> {
    loop {
        let n = stream.read(scratch.read_target())?;
        if n == 0 {
            return Ok(());
        }
        let over = match turn(scratch, &mut channel, n) {
            Ok(over) => over,
            Err(error) => {
                let code = error.close_code();
                channel
                    .close(scratch, code as u16, code.label())
                    .map_err(io::Error::other)?;
                true
            }
        };
        stream.write_all(scratch.outbound())?;
        scratch.clear_outbound();
        if over {
            stream.shutdown(Shutdown::Write)?;
            stream.set_read_timeout(Some(LINGER))?;
            return io::copy(&mut stream, &mut io::sink()).map(drop);
        }
    }
}

/// Whether the connection is over.
fn turn<C: StreamChannel>(scratch: &mut Scratch, channel: &mut C, n: usize) -> Result<bool, ChannelError> {
    let mut over = false;
    channel.handle_input(scratch, n)?;
    while let Some(event) = channel.poll_event(scratch)? {
        match event {
            ChannelEvent::Upgrade(_) => channel.accept(scratch, None)?,
            ChannelEvent::Message(kind, payload) => channel.send(scratch, kind, &payload)?,
            ChannelEvent::Alive | ChannelEvent::Delivered(_) | ChannelEvent::Moved(_) => {}
            ChannelEvent::Closed { .. } | ChannelEvent::Lost => over = true,
        }
    }
    channel.park(scratch)?;
    Ok(over)
}
