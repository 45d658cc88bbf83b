"""What is on the wire on `udp` (PROTOCOL.md sections 14.1 and 14.4): datagrams, packet numbers and keys.

No socket, no clock and no state but keys.
"""

import string
from types import SimpleNamespace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secure import Rejected

VERSION = 1
HELLO, RETRY, CHALLENGE, REFUSED, RESET, DATA = 1, 2, 3, 4, 5, 0x40
MIN_HELLO_BYTES = 256
MAX_DATAGRAM_BYTES = 1472
HEADER_BYTES = 13
TAG_BYTES = 16
MIN_DATA_BYTES = HEADER_BYTES + TAG_BYTES
TOKEN_BYTES = 16
REKEY_PACKETS = 1 << 20
REPLAY_WINDOW = 256
CODE_CHARACTERS = set(string.ascii_lowercase + string.digits + "_")
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


class Broken(Rejected):
    """The other side broke the protocol, for which there is a close code."""

    def __init__(self, why, code=1002):
        super().__init__(why)
        self.code = code


def encode_parameters(attempt, max_datagram, receive_bytes, receive_messages):
    widths = ((attempt, 8), (max_datagram, 2), (receive_bytes, 4), (receive_messages, 2))
    return b"".join(value.to_bytes(width, "big") for value, width in widths)


def encode_hello(parameters, cookie, credential):
    body = bytes([HELLO, VERSION]) + parameters + bytes([len(cookie)]) + cookie
    body += len(credential).to_bytes(2, "big") + credential
    return body.ljust(MIN_HELLO_BYTES, b"\0")


class Reader:
    """Takes bytes off the front; what is not there is a datagram to be dropped."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if len(self.data) - self.at < count:
            raise Rejected("cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width, least=0, most=U64):
        value = int.from_bytes(self.take(width), "big")
        if not least <= value <= most:
            raise Rejected(f"{value} is not from {least} to {most}")
        return value

    def end(self):
        if self.at != len(self.data):
            raise Rejected("more than the whole")


def decode_answer(datagram):
    """What a server sends in the clear, as a namespace with a `type`. Raises Rejected for what is to be dropped."""
    if len(datagram) > MAX_DATAGRAM_BYTES:
        raise Rejected("too long")
    reader = Reader(datagram)
    kind = reader.number(1)
    if kind == RESET:
        answer = SimpleNamespace(type="reset", connection_id=reader.take(8), token=reader.take(TOKEN_BYTES))
        reader.end()
        return answer
    if kind not in (RETRY, CHALLENGE, REFUSED):
        raise Rejected(f"a datagram of type {kind:#x}")
    reader.number(1, VERSION, VERSION)
    answer = SimpleNamespace(attempt=reader.number(8))
    if kind == RETRY:
        answer.type, answer.cookie = "retry", reader.take(reader.number(1, 1, 32))
    elif kind == CHALLENGE:
        answer.type, answer.connection_id, answer.message_2 = "challenge", reader.take(8), reader.take(48)
    else:
        answer.type, answer.status = "refused", reader.number(2, 400, 599)
        answer.retry_after_ms, answer.retryable = reader.number(4), bool(reader.number(1, 0, 1))
        answer.code = reader.take(reader.number(1, 1, 64)).decode("latin-1")
        if set(answer.code) - CODE_CHARACTERS:
            raise Rejected(f"a code {answer.code!r}")
    reader.end()
    return answer


def encode_header(connection_id, number):
    return bytes([DATA]) + connection_id + (number & U32).to_bytes(4, "big")


def nonce(number):
    return bytes(4) + number.to_bytes(8, "big")


def rekey(key):
    return AESGCM(key).encrypt(nonce(U64), bytes(32), b"")[:32]


def recover_number(low, expected):
    """The packet number nearest to the expected one that has these lower 32 bits."""
    candidate = expected & ~U32 | low
    if candidate <= expected - (1 << 31):
        return candidate + (1 << 32)
    if candidate > expected + (1 << 31) and candidate >= 1 << 32:
        return candidate - (1 << 32)
    return candidate


class Sealing:
    """The packets that one end sends."""

    def __init__(self, key, connection_id, number=0):
        self.connection_id, self.number, self.key = connection_id, number, key

    def seal(self, packet):
        """(its number, the datagram)."""
        number = self.number
        header = encode_header(self.connection_id, number)
        datagram = header + AESGCM(self.key).encrypt(nonce(number), packet, header)
        self.number += 1
        if self.number % REKEY_PACKETS == 0:
            self.key = rekey(self.key)
        return number, datagram


class Opening:
    """The packets that one end receives. `open` does not take a number for accepted: `accept` does."""

    def __init__(self, key, connection_id, expected=0):
        """`key` is that of the generation of the expected packet."""
        self.connection_id, self.expected = connection_id, expected
        self.generation = expected // REKEY_PACKETS
        self.keys = {self.generation: key, self.generation + 1: rekey(key)}
        self.accepted = set()
        self.forged = 0

    def open(self, datagram):
        """(number, packet), or None for what is to be dropped."""
        if len(datagram) < MIN_DATA_BYTES or len(datagram) > MAX_DATAGRAM_BYTES or datagram[0] != DATA:
            return None
        header = datagram[:HEADER_BYTES]
        if header[1:9] != self.connection_id:
            return None
        number = recover_number(int.from_bytes(header[9:], "big"), self.expected)
        key = self.keys.get(number // REKEY_PACKETS)
        if not self.fresh(number) or key is None:
            return None
        try:
            return number, AESGCM(key).decrypt(nonce(number), datagram[HEADER_BYTES:], header)
        except InvalidTag:
            self.forged += 1
            return None

    def fresh(self, number):
        return number not in self.accepted and number >= self.expected - REPLAY_WINDOW

    def accept(self, number):
        self.accepted.add(number)
        if number >= self.expected:
            self.expected = number + 1
            self.accepted = {n for n in self.accepted if self.fresh_enough(n)}
        self.move_on(self.expected - 1)

    def fresh_enough(self, number):
        return number >= self.expected - REPLAY_WINDOW

    def move_on(self, highest):
        """Keeps the keys of the generation before, as long as it may be needed, of this one and of the next."""
        self.generation = highest // REKEY_PACKETS
        newest = max(self.keys)
        if newest == self.generation:
            self.keys[newest + 1] = rekey(self.keys[newest])
        oldest = max(0, self.expected - REPLAY_WINDOW) // REKEY_PACKETS
        for generation in [g for g in self.keys if g < oldest]:
            del self.keys[generation]
