"""The ways to a gateway, behind one set of methods: `send`, `receive`, `ping`, `close`. (`udp` is in udp.py.)

On all, pings of the server are answered while the device is busy elsewhere.
"""

import asyncio
import contextlib
import ssl

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import secure
from outcome import Closed, Lost
from udp import Udp

PATIENCE_S = 20
MAX_MESSAGE_BYTES = 8 << 20
SUBPROTOCOL = "holdfast.v1"


def soon(awaitable):
    return asyncio.wait_for(awaitable, PATIENCE_S)


def open_socket(gateway, authorization=None, **options):
    """A plain WebSocket. Raises the library's InvalidStatus when it is refused."""
    if gateway.channel == "wss":
        options["ssl"] = ssl.create_default_context(cafile=gateway.ca)
        options["server_hostname"] = "localhost"
    if authorization:
        options["additional_headers"] = {"Authorization": authorization}
    return connect(
        gateway.url,
        compression=None,
        max_size=MAX_MESSAGE_BYTES,
        open_timeout=PATIENCE_S,
        ping_interval=None,
        proxy=None,
        **options,
    )


def present(scheme, entry, credential, browser):
    """Where a credential goes: into the field, or where browsers can put it."""
    if browser:
        return {"subprotocols": [SUBPROTOCOL, entry + credential]}
    return {"authorization": f"{scheme} {credential}"}


class Wss:
    """A WebSocket message is a message."""

    def __init__(self, socket):
        self.socket = socket

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, gateway, browser=False):
        async with open_socket(gateway, **present("Bearer", "bearer.", gateway.token, browser)) as socket:
            assert socket.subprotocol == (SUBPROTOCOL if browser else None), socket.subprotocol
            yield cls(socket)

    async def send(self, message):
        await self.socket.send(message)

    async def receive(self):
        try:
            return await soon(self.socket.recv())
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise Lost from closed
            raise Closed(closed.rcvd.code, closed.rcvd.reason) from closed

    async def ping(self):
        await soon(await self.socket.ping())

    async def close(self, code):
        await soon(self.socket.close(code))
        assert self.socket.close_code == code, self.socket.close_code


class Ws:
    """A message is one record or several, each a WebSocket message."""

    def __init__(self, socket, sending, receiving):
        self.socket, self.sending, self.receiving = socket, sending, receiving
        self.inbox = asyncio.Queue()
        self.ponged = asyncio.Event()
        self.answers_pings = True
        self.assembler = secure.Assembler()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, gateway, browser=False, time_ms=secure.now_ms):
        handshake = secure.Handshake(gateway.identity, gateway.key, time_ms())
        async with cls.open_with(gateway, handshake, browser) as channel:
            yield channel

    @classmethod
    @contextlib.asynccontextmanager
    async def open_with(cls, gateway, handshake, browser=False):
        async with open_socket(gateway, **present("Holdfast", "noise.", handshake.credential, browser)) as socket:
            assert socket.subprotocol == (SUBPROTOCOL if browser else None), socket.subprotocol
            channel = cls(socket, *handshake.take_challenge(await soon(socket.recv())))
            reading = asyncio.create_task(channel.read())
            try:
                yield channel
            finally:
                reading.cancel()

    async def send(self, message):
        for kind, data in secure.cut(message):
            await self.send_record(kind, data)

    async def send_record(self, kind, data):
        await self.socket.send(self.sending.seal(kind, data))

    async def receive(self):
        message = await soon(self.inbox.get())
        if isinstance(message, Exception):
            raise message
        return message

    async def ping(self):
        """In a record, and in the clear: both must be answered."""
        self.ponged.clear()
        await self.send_record(secure.CONTROL, secure.PING)
        await soon(self.ponged.wait())
        await soon(await self.socket.ping())

    async def close(self, code):
        await self.send_record(secure.CONTROL, secure.encode_close(code))
        await soon(self.socket.close(code))
        assert self.socket.close_code == code, self.socket.close_code

    async def read(self):
        """Opens records until the end, which is what the inbox holds last."""
        try:
            while True:
                message = await self.take(await self.socket.recv())
                if message is not None:
                    self.inbox.put_nowait(message)
        except ConnectionClosed:
            self.inbox.put_nowait(Lost("no close record came"))
        except Exception as end:
            self.inbox.put_nowait(end)

    async def take(self, record):
        if isinstance(record, str):
            raise secure.Rejected(f"a message in the clear: {record!r}")
        kind, data = self.receiving.open(record)
        if kind != secure.CONTROL:
            return self.assembler.push(kind, data)
        if data == secure.PING:
            if self.answers_pings:
                await self.send_record(secure.CONTROL, secure.PONG)
        elif data == secure.PONG:
            self.ponged.set()
        else:
            code, reason = secure.decode_close(data)
            await self.expect_close_frame(code)
            raise Closed(code, reason)
        return None

    async def expect_close_frame(self, code):
        """What follows a close record: the same in the clear, and no record."""
        try:
            record = await soon(self.socket.recv())
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != code:
                raise secure.Rejected(f"a close record {code}, then {closed.rcvd}") from closed
        else:
            raise secure.Rejected(f"a message of {len(record)} bytes after a close record")


CHANNELS = {"wss": Wss, "ws": Ws, "udp": Udp}
