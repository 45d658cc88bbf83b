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


def open_socket(gateway, authorization=None, headers=(), **options):
    """A plain WebSocket. Raises the library's InvalidStatus when it is refused."""
    if gateway.channel == "wss":
        options["ssl"] = ssl.create_default_context(cafile=gateway.ca)
        options["server_hostname"] = "localhost"
    headers = list(headers)
    if authorization:
        headers.append(("Authorization", authorization))
    fixed = {"compression": None, "max_size": MAX_MESSAGE_BYTES, "ping_interval": None, "proxy": None}
    return connect(gateway.url, additional_headers=headers, **{"open_timeout": PATIENCE_S} | fixed | options)


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


# What `Ws.next` gives for a ping record.
PINGED = object()


class Ws:
    """A message is one record or several, each a WebSocket message."""

    def __init__(self, socket, sending, receiving):
        self.socket, self.sending, self.receiving = socket, sending, receiving
        self.inbox = asyncio.Queue()
        self.ponged = asyncio.Event()
        self.ponging = None
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
        channel = await cls.begin(gateway, handshake, browser)
        async with channel.socket:
            reading = asyncio.create_task(channel.read())
            try:
                yield channel
            finally:
                reading.cancel()

    @classmethod
    async def begin(cls, gateway, handshake, browser=False, **options):
        """Without anybody who reads: for `next`."""
        shown = present("Holdfast", "noise.", handshake.credential, browser)
        socket = await open_socket(gateway, **shown, **options)
        try:
            assert socket.subprotocol == (SUBPROTOCOL if browser else None), socket.subprotocol
            return cls(socket, *handshake.take_challenge(await soon(socket.recv())))
        except BaseException:
            socket.transport.abort()
            raise

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
                message = await self.next()
                if message is not PINGED:
                    self.inbox.put_nowait(message)
        except Exception as end:
            self.inbox.put_nowait(end)

    async def next(self):
        """A message, or PINGED."""
        while True:
            try:
                record = await self.socket.recv()
            except ConnectionClosed as closed:
                raise Lost("no close record came") from closed
            message = await self.take(record)
            if message is not None:
                return message

    async def take(self, record):
        if isinstance(record, str):
            raise secure.Rejected(f"a message in the clear: {record!r}")
        kind, data = self.receiving.open(record)
        if kind != secure.CONTROL:
            return self.assembler.push(kind, data)
        if data == secure.PING:
            self.pong()
            return PINGED
        if data == secure.PONG:
            self.ponged.set()
        else:
            code, reason = secure.decode_close(data)
            await self.expect_close_frame(code)
            raise Closed(code, reason)
        return None

    def pong(self):
        """Does not wait: who reads on only when the server has read stands still with it. One on its way is enough."""
        if self.answers_pings and (self.ponging is None or self.ponging.done()):
            self.ponging = asyncio.create_task(self.send_pong())

    async def send_pong(self):
        # Who reads will see the end.
        with contextlib.suppress(ConnectionClosed):
            await self.send_record(secure.CONTROL, secure.PONG)

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
