#!/usr/bin/env python3
"""Devices on `ws` that a test drives: the behaviour suite, run with a device that shares no code with the gateway.

Run by tests/src/python.rs with the path of a Unix socket to listen on; ends when its standard input does. Each connection to the
socket is one device. What the test says and hears goes through it as frames: `u32 length ‖ u8 kind ‖ bytes`, the length that of the bytes.

    from the test               to the test
    C  connect, JSON, first     O  connected, JSON: the 101's headers
                                R  refused, JSON: status, headers, body
                                F  failed: whose fault ("io", "timeout", "malformed"), a space, why
    T  text message             S  the message before is with the system
    B  binary message           G  the connection is gone, and the message with it
    P  ping
    X  close: u16 code ‖ reason
    N  one message, please      T, B  the message; P  a ping came, and was answered
                                E  the end: u16 code ‖ reason

Nothing is read from the server but for an `N`, and a message that was sent is told of when the system has it: that is how a test
feels the back-pressure of the other side, and makes its own felt.
"""

import asyncio
import base64
import json
import socket
import sys
from types import SimpleNamespace

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

import secure
from channels import PINGED, Ws, open_socket
from outcome import Closed

# Longer than any bound of a test gateway's own on an upgrade.
PATIENCE_S = 80
# The code of an end of which nobody who may be believed said why (RFC 6455 section 7.1.5).
ABNORMAL = 1006
# The library reads no further ahead than this, in frames, and keeps nothing back that the system does not take.
AHEAD = {"max_queue": 1, "write_limit": 0}


class Test:
    """The other end of the Unix socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def hear(self):
        """(kind, bytes), or None at the end."""
        try:
            head = await self.reader.readexactly(5)
            return head[4:].decode(), await self.reader.readexactly(int.from_bytes(head[:4], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def tell(self, kind, data=b""):
        """What there is to tell is bounded by what was asked for."""
        self.writer.write(len(data).to_bytes(4, "big") + kind.encode() + data)

    def tell_json(self, kind, value):
        self.tell(kind, json.dumps(value).encode())


async def serve(reader, writer):
    test = Test(reader, writer)
    try:
        channel = await connect(test)
        if channel is not None:
            try:
                await drive(test, channel)
            finally:
                # Gone, as with a process: what the system has still goes out.
                channel.socket.transport.abort()
    finally:
        writer.close()


async def connect(test):
    """The channel, or None; the test is told."""
    kind, wanted = await test.hear()
    assert kind == "C", kind
    wanted = SimpleNamespace(**json.loads(wanted))
    try:
        channel = await dial(wanted)
    except InvalidStatus as refused:
        answer = refused.response
        body = base64.b64encode(answer.body).decode()
        headers = list(answer.headers.raw_items())
        test.tell_json("R", {"status": answer.status_code, "headers": headers, "body": body})
    except TimeoutError as error:
        test.tell("F", f"timeout {error!r}".encode())
    except OSError as error:
        test.tell("F", f"io {error!r}".encode())
    except (InvalidHandshake, ConnectionClosed, secure.Rejected) as error:
        test.tell("F", f"malformed {error!r}".encode())
    else:
        test.tell_json("O", list(channel.socket.response.headers.raw_items()))
        return channel
    return None


async def dial(wanted):
    gateway = SimpleNamespace(channel="ws", url=wanted.url)
    options = AHEAD | {"open_timeout": PATIENCE_S, "sock": await tcp(wanted)}
    if wanted.identity is None:
        # No key, no challenge to be believed: what comes of it is a refusal.
        opened = await open_socket(gateway, headers=wanted.headers, **options)
        opened.transport.abort()
        raise secure.Rejected("admitted without a key")
    handshake = secure.Handshake(wanted.identity, secure.from_text(wanted.key), secure.now_ms())
    return await Ws.begin(gateway, handshake, headers=wanted.headers, **options)


async def tcp(wanted):
    """A connection from where the test wants it, with the receive buffer that it wants."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if wanted.receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted.receive_buffer)
        if wanted.source is not None:
            made.bind((wanted.source, 0))
        await asyncio.get_running_loop().sock_connect(made, (wanted.host, wanted.port))
    except BaseException:
        made.close()
        raise
    return made


async def drive(test, channel):
    """Until the test lets go of the device."""
    to_send, to_read = asyncio.Queue(), asyncio.Queue()
    # What fails for another reason than the connection ends the device, and says so on standard error.
    async with asyncio.TaskGroup() as group:
        halves = [group.create_task(half) for half in (send(test, channel, to_send), read(test, channel, to_read))]
        while (heard := await test.hear()) is not None:
            # At most one of each waits: the test sends when it was told of the one before, and asks when it was given one.
            (to_read if heard[0] == "N" else to_send).put_nowait(heard)
        for half in halves:
            half.cancel()


async def send(test, channel, to_send):
    while True:
        kind, data = await to_send.get()
        try:
            if kind == "X":
                # It ends when the server has answered, which may have to wait until the test reads on.
                code, reason = int.from_bytes(data[:2], "big"), data[2:].decode()
                await channel.send_record(secure.CONTROL, secure.encode_close(code, reason))
                await channel.socket.close(code, reason)
                continue
            if kind == "P":
                await channel.send_record(secure.CONTROL, secure.PING)
            else:
                await channel.send(data.decode() if kind == "T" else data)
            test.tell("S")
        except ConnectionClosed:
            test.tell("G")


async def read(test, channel, to_read):
    await read_to_the_end(test, channel, to_read)
    while True:
        await to_read.get()
        test.tell("E", ABNORMAL.to_bytes(2, "big") + b"it has ended before")


async def read_to_the_end(test, channel, to_read):
    while True:
        await to_read.get()
        try:
            message = await channel.next()
            if message is PINGED:
                test.tell("P")
            elif isinstance(message, str):
                test.tell("T", message.encode())
            else:
                test.tell("B", message)
        except Closed as closed:
            return test.tell("E", closed.code.to_bytes(2, "big") + closed.reason.encode())
        except Exception as end:  # Whatever was wrong, to the test it is a connection that broke, and why.
            return test.tell("E", ABNORMAL.to_bytes(2, "big") + repr(end).encode())


async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("listening", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
