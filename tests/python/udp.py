"""The `udp` channel: opens a connection (PROTOCOL.md section 14.3) and drives it over a socket.

`weather` stands between the connection and the socket: each datagram goes through it on its way out and in.
"""

import asyncio
import contextlib
import hmac
import os
import socket
import time
import urllib.parse
import warnings
from types import SimpleNamespace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection

import secure
from outcome import Lost
from udp_connection import Connection
from udp_wire import decode_answer, encode_hello, encode_parameters

PATIENCE_S = 20
# Longer than a device's 15 s, for two HELLOs more: on a lossy path all of them are hardly ever lost.
ATTEMPT_S = 40
FIRST_REPEAT_S = 1
MAX_RETRIES = 3
MAX_CHALLENGES = 64
REFUSAL_WAIT_S = 1
WINDOW = SimpleNamespace(messages=64, bytes=262_144)
MAX_DATAGRAM_BYTES = 1200
TICK_S = 0.001
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2


class Refused(Exception):
    def __init__(self, answer):
        super().__init__(f"{answer.status} {answer.code}")
        self.status, self.code, self.retryable = answer.status, answer.code, answer.retryable
        self.retry_after_ms = answer.retry_after_ms


class Handshake:
    """One attempt: its HELLO, and what a CHALLENGE makes of it."""

    def __init__(self, identity, key, time_ms, window=WINDOW, max_datagram=MAX_DATAGRAM_BYTES, channel="udp", **fixed):
        """`fixed` are the attempt and the ephemeral key where they are not to be random."""
        self.attempt = fixed.get("attempt", int.from_bytes(os.urandom(8), "big"))
        self.window, self.max_datagram, self.key, self.channel = window, max_datagram, key, channel
        self.parameters = encode_parameters(self.attempt, max_datagram, window.bytes, window.messages)
        self.identity = secure.encode_identity(identity)
        self.time = b"" if time_ms is None else time_ms.to_bytes(8, "big")
        self.ephemeral = fixed.get("ephemeral") or X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        self.noise, message_1 = self.begin()
        self.credential = self.identity + message_1

    def begin(self):
        """The library's state as it is before message 2, which it spoils when that does not authenticate."""
        noise = NoiseConnection.from_name(secure.NOISE)
        noise.set_as_initiator()
        noise.set_psks(psk=self.key)
        noise.set_prologue(b"holdfast/1 " + self.channel.encode() + b"\0" + self.identity + self.parameters)
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, self.ephemeral)
        with warnings.catch_warnings():
            # It warns of an ephemeral key that is not its own; ours is used in one attempt, for one message 1.
            warnings.simplefilter("ignore", UserWarning)
            noise.start_handshake()
        return noise, noise.write_message(self.time)

    def hello(self, cookie=b""):
        return encode_hello(self.parameters, cookie, self.credential)

    def take_challenge(self, message_2):
        """The keys for sending and receiving. Raises Rejected, and can be tried again."""
        noise, _ = self.begin()
        try:
            noise.read_message(message_2)
        except (InvalidTag, ValueError):
            # The latter when nothing but zeros came out of the exchange.
            raise secure.Rejected("the server does not hold the key") from None
        ciphers = noise.noise_protocol
        return ciphers.cipher_state_encrypt.k, ciphers.cipher_state_decrypt.k


class Clear:
    """No weather."""

    def out(self, datagram):
        return [datagram]

    into = out


class Socket(asyncio.DatagramProtocol):
    """Keeps what came until somebody sets `deliver`."""

    def __init__(self):
        self.datagrams = asyncio.Queue()
        self.deliver = self.datagrams.put_nowait

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, _):
        self.deliver(data)

    def error_received(self, _):
        """Anybody on the way can make one."""

    def send(self, datagrams):
        for datagram in datagrams:
            self.transport.sendto(datagram)

    @classmethod
    async def open(cls, gateway):
        """To the server's address, from a new port."""
        url = urllib.parse.urlsplit(gateway.url)
        loop = asyncio.get_running_loop()
        transport, opened = await loop.create_datagram_endpoint(cls, remote_addr=(url.hostname, url.port))
        system = transport.get_extra_info("socket")
        if system.family == socket.AF_INET:
            system.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        return opened


class Attempt:
    """Section 14.3 from the device's side."""

    def __init__(self, opened, handshake, weather):
        self.socket, self.handshake, self.weather = opened, handshake, weather
        self.cookie, self.retries, self.tried, self.refusal = b"", 0, 0, None
        self.challenge = None

    async def run(self):
        """(keys, connection id). Raises Refused or Lost."""
        now = time.monotonic()
        self.give_up, self.interval = now + ATTEMPT_S, FIRST_REPEAT_S
        self.say_hello(now)
        while True:
            now = time.monotonic()
            if now >= self.give_up:
                raise Refused(self.refusal) if self.refusal else Lost("the attempt failed")
            if now >= self.repeat_at:
                self.interval *= 2
                self.say_hello(now)
            until = min(self.give_up, self.repeat_at) - time.monotonic()
            try:
                datagram = await asyncio.wait_for(self.socket.datagrams.get(), max(0, until))
            except TimeoutError:
                continue
            for datagram in self.weather.into(datagram):
                if opened := self.handle(datagram):
                    return opened

    def say_hello(self, now):
        self.socket.send(self.weather.out(self.handshake.hello(self.cookie)))
        self.repeat_at = now + self.interval

    def handle(self, datagram):
        try:
            answer = decode_answer(datagram)
        except secure.Rejected:
            return None
        if getattr(answer, "attempt", None) != self.handshake.attempt:
            return None
        now = time.monotonic()
        if answer.type == "retry" and self.retries < MAX_RETRIES:
            self.retries += 1
            self.cookie, self.interval = answer.cookie, FIRST_REPEAT_S
            self.say_hello(now)
        elif answer.type == "refused" and self.refusal is None:
            self.refusal = answer
            self.give_up = min(self.give_up, now + REFUSAL_WAIT_S)
        elif answer.type == "challenge" and self.tried < MAX_CHALLENGES:
            self.tried += 1
            with contextlib.suppress(secure.Rejected):
                keys = self.handshake.take_challenge(answer.message_2)
                self.challenge = datagram
                return keys, answer.connection_id
        return None


class Udp:
    """A connection over a socket, with the methods that the other channels have."""

    def __init__(self, gateway, opened, connection, weather):
        self.gateway, self.socket, self.connection, self.weather = gateway, opened, connection, weather
        self.inbox, self.changed, self.timer, self.resets = asyncio.Queue(), asyncio.Event(), None, []
        self.told = False
        self.listen()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, gateway, time_ms=secure.now_ms, weather=None, window=WINDOW):
        handshake = Handshake(gateway.identity, gateway.key, time_ms(), window)
        async with cls.open_with(gateway, handshake, weather) as channel:
            yield channel

    @classmethod
    @contextlib.asynccontextmanager
    async def open_with(cls, gateway, handshake, weather=None):
        weather = weather or Clear()
        opened = await Socket.open(gateway)
        try:
            attempt = Attempt(opened, handshake, weather)
            keys, connection_id = await attempt.run()
            window = (handshake.window.messages, handshake.window.bytes)
            connection = Connection(keys, connection_id, window, time.monotonic())
            channel = cls(gateway, opened, connection, weather)
        except BaseException:
            opened.transport.close()
            raise
        channel.handshake, channel.attempt = handshake, attempt
        try:
            yield channel
        finally:
            channel.leave()

    def listen(self):
        self.socket.deliver = self.on_datagram
        while not self.socket.datagrams.empty():
            self.on_datagram(self.socket.datagrams.get_nowait())

    def leave(self):
        """Says that it is done, without waiting for the answer."""
        if not self.connection.end:
            self.connection.close(1000, time.monotonic())
            self.turn()
        if self.timer:
            self.timer.cancel()
        self.socket.transport.close()

    async def send(self, message):
        self.connection.send(message)
        self.turn()

    async def receive(self):
        message = await asyncio.wait_for(self.inbox.get(), PATIENCE_S)
        if isinstance(message, Exception):
            self.inbox.put_nowait(message)
            raise message
        return message

    async def ping(self):
        number = self.connection.want_ping()
        self.turn()
        await self.until(lambda: self.connection.ping >= number)

    async def close(self, code):
        self.connection.close(code, time.monotonic())
        self.turn()
        await self.until(lambda: self.connection.end)
        assert self.connection.close_acknowledged, "the close was not acknowledged"

    async def until(self, condition):
        """Waits for something that the connection comes to know."""

        async def wait():
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), PATIENCE_S)

    async def move(self):
        """Goes on from another port."""
        old, self.socket = self.socket, await Socket.open(self.gateway)
        old.transport.close()
        self.listen()

    def send_datagrams(self, *datagrams):
        """Some that the connection knows nothing of."""
        self.socket.send(datagrams)

    def send_packet(self, plain):
        self.send_datagrams(self.connection.seal_raw(plain))

    def on_datagram(self, datagram):
        now = time.monotonic()
        for came in self.weather.into(datagram):
            self.take(came, now)
        self.turn()

    def take(self, datagram, now):
        if self.connection.handle_datagram(datagram, now):
            return
        with contextlib.suppress(secure.Rejected):
            answer = decode_answer(datagram)
            if answer.type == "reset" and answer.connection_id == self.connection.opening.connection_id:
                self.resets.append(answer.token)
                if hmac.compare_digest(answer.token, self.connection.reset_token or b""):
                    self.connection.reset()

    def on_time(self):
        self.connection.handle_time(time.monotonic())
        self.turn()

    def turn(self):
        """Sends what is to be sent, hands up what came, and sets the clock."""
        now = time.monotonic()
        while (datagram := self.connection.poll_datagram(now)) is not None:
            self.socket.send(self.weather.out(datagram))
        for message in self.connection.messages:
            self.inbox.put_nowait(message)
        self.connection.messages.clear()
        if self.connection.end and not self.told:
            self.told = True
            self.inbox.put_nowait(self.connection.end)
        self.changed.set()
        if self.timer:
            self.timer.cancel()
        deadline = self.connection.deadline()
        # A moment ahead at least, so that what waits for room in the window does not keep the loop busy.
        self.timer = deadline and asyncio.get_running_loop().call_at(max(deadline, now + TICK_S), self.on_time)
