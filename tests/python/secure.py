"""What `ws` has beyond `wss` (PROTOCOL.md sections 4 and 5): the handshake, and records.

Noise is the library's. A record is a Noise transport message, so the library's cipher states count and encrypt.
"""

import base64
import json
import re
import time

from cryptography.exceptions import InvalidTag
from noise.connection import NoiseConnection
from noise.state import CipherState

NOISE = b"Noise_NNpsk0_25519_AESGCM_SHA256"
TEXT, BINARY, CONTROL, MORE = 0x00, 0x01, 0x02, 0x80
CHUNK_BYTES = 61440
REKEY_RECORDS = 1 << 20
MAX_REASON_BYTES = 123
MAX_CHALLENGE_BYTES = 1024
PING, PONG = b"\0", b"\1"


class Rejected(Exception):
    """The other side broke the protocol, or is not who it should be."""


def to_text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_text(text):
    """Takes the one form only: no padding, no other alphabet, no spare bits."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Rejected("not base64url") from None
    if to_text(data) != text:
        raise Rejected("not base64url")
    return data


def lp(text):
    return bytes([len(text)]) + text.encode()


def encode_identity(identity):
    names = (identity[field] for field in ("key_id", "product", "class", "device"))
    return b"\1" + b"".join(map(lp, names)) + identity["key_version"].to_bytes(4, "big")


def now_ms():
    return time.time_ns() // 1_000_000


class Handshake:
    """One attempt to connect: makes its credential, then takes the challenge."""

    def __init__(self, identity, key, time_ms, channel="ws"):
        encoded = encode_identity(identity)
        self.noise = NoiseConnection.from_name(NOISE)
        self.noise.set_as_initiator()
        self.noise.set_psks(psk=key)
        self.noise.set_prologue(b"holdfast/1 " + channel.encode() + b"\0" + encoded)
        self.noise.start_handshake()
        payload = b"" if time_ms is None else time_ms.to_bytes(8, "big")
        self.credential = to_text(encoded + self.noise.write_message(payload))

    def take_challenge(self, message):
        """Both directions, the device's first, once the server has shown that it holds the key."""
        try:
            self.noise.read_message(read_challenge(message))
        except InvalidTag:
            raise Rejected("the server does not hold the key") from None
        ciphers = self.noise.noise_protocol
        return Direction(ciphers.cipher_state_encrypt), Direction(ciphers.cipher_state_decrypt)


def read_challenge(message):
    """Message 2 out of the server's first message."""
    parts = re.fullmatch(r"@challenge[ \t\r\n]+(.*)", message, re.DOTALL) if isinstance(message, str) else None
    if parts is None or len(message.encode()) > MAX_CHALLENGE_BYTES:
        raise Rejected(f"the first message is no challenge: {message!r}")
    try:
        message_2 = from_text(json.loads(parts[1])["noise"])
    except (ValueError, KeyError, TypeError):
        raise Rejected(f"a challenge without message 2: {message!r}") from None
    if len(message_2) != 48:
        raise Rejected(f"message 2 has {len(message_2)} bytes")
    return message_2


class Direction:
    """The records of one direction."""

    def __init__(self, cipher):
        self.cipher = cipher

    @classmethod
    def at(cls, key, counter):
        """In the middle of a session, as the test vectors have it."""
        cipher = CipherState(NoiseConnection.from_name(NOISE).noise_protocol)
        cipher.initialize_key(key)
        cipher.set_nonce(counter)
        return cls(cipher)

    def seal(self, kind, data):
        record = self.cipher.encrypt_with_ad(b"", bytes([kind]) + data)
        self.advance()
        return record

    def open(self, record):
        """(kind, data); a record that was refused is the last."""
        if not 17 <= len(record) <= CHUNK_BYTES + 17:
            raise Rejected(f"a record of {len(record)} bytes")
        try:
            plain = self.cipher.decrypt_with_ad(b"", record)
        except InvalidTag:
            raise Rejected("a record that is not authentic") from None
        self.advance()
        return plain[0], plain[1:]

    def advance(self):
        if self.cipher.n % REKEY_RECORDS == 0:
            self.cipher.rekey()


def cut(message):
    """The kinds and data of a message's records."""
    kind, data = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
    while len(data) > CHUNK_BYTES:
        yield kind | MORE, data[:CHUNK_BYTES]
        data = data[CHUNK_BYTES:]
    yield kind, data


class Assembler:
    """Makes messages of the data of text and binary records."""

    def __init__(self):
        self.kind, self.parts = None, []

    def push(self, kind, data):
        """A message if it is whole, else None."""
        plain = kind & ~MORE
        if plain not in (TEXT, BINARY) or self.kind not in (None, plain):
            raise Rejected(f"a record of kind {kind:#x} after {self.kind}")
        if kind & MORE and len(data) != CHUNK_BYTES:
            raise Rejected(f"a chunk of {len(data)} bytes")
        if self.kind is not None and not data:
            raise Rejected("an empty chunk")
        self.kind = plain
        self.parts.append(data)
        if kind & MORE:
            return None
        whole, self.kind, self.parts = b"".join(self.parts), None, []
        return whole.decode() if plain == TEXT else whole


def encode_close(code, reason=""):
    return b"\2" + code.to_bytes(2, "big") + reason.encode()


def decode_close(data):
    """(code, reason) of a control record that is neither ping nor pong."""
    if len(data) < 3 or data[0] != 2 or len(data) > 3 + MAX_REASON_BYTES:
        raise Rejected(f"a control record {data!r}")
    return int.from_bytes(data[1:3], "big"), data[3:].decode()
