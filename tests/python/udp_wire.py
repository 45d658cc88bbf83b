"""What is on the wire on `udp` (PROTOCOL.md sections 14.1, 14.4, 14.5): datagrams, packets in them, packet numbers and keys.

No socket, no clock and no state but keys.
"""

import string
from types import SimpleNamespace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events import varint
from secure import Rejected

VERSION = 1
HELLO, RETRY, CHALLENGE, REFUSED, RESET, DATA = 1, 2, 3, 4, 5, 0x40
MIN_HELLO_BYTES = 256
MAX_DATAGRAM_BYTES = 1472
HEADER_BYTES = 13
TAG_BYTES = 16
MIN_DATA_BYTES = HEADER_BYTES + TAG_BYTES
TOKEN_BYTES = 16
MAX_PIECES = 64
MAX_RUNS = 32
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


# Fields of the messages in a packet: number -> (name, wire type, the greatest value).
PACKET = {
    1: ("ack", 2, None),
    2: ("pieces", 2, None),
    3: ("credit", 2, None),
    4: ("path_challenge", 1, U64),
    5: ("path_response", 1, U64),
    6: ("ping", 0, U64),
    7: ("close", 2, None),
    8: ("reset_token", 2, None),
    9: ("padding", 2, None),
}
ACK = {1: ("largest", 0, U64), 2: ("ranges", 2, None), 3: ("delay_us", 0, U32)}
PIECE = {1: ("message", 0, U64), 2: ("kind", 0, U32), 3: ("length", 0, U32), 4: ("offset", 0, U32), 5: ("data", 2, None)}
CREDIT = {1: ("messages", 0, U64), 2: ("bytes", 0, U64)}
CLOSE = {1: ("code", 0, U32), 2: ("reason", 2, None), 3: ("messages", 0, U64)}
NESTED = {"ack": ACK, "credit": CREDIT, "close": CLOSE}
ELICITING = {"pieces", "ping", "credit", "path_challenge", "reset_token", "close"}


def encode_fields(schema, values):
    """Protobuf of the fields that are there and not empty or 0."""
    out = []
    for number, (name, wire, _) in schema.items():
        value = values.get(name)
        if not value:
            continue
        out.append(varint(number << 3 | wire))
        if wire == 0:
            out.append(varint(int(value)))
        elif wire == 1:
            out.append(value.to_bytes(8, "little"))
        else:
            out.append(varint(len(value)) + value)
    return b"".join(out)


def encode_piece(piece):
    body = encode_fields(PIECE, piece)
    return b"\x12" + varint(len(body)) + body


def encode_packet(packet):
    """A dict as `decode_packet` gives it. `ack`, `credit`, `close` and `padding` are there even if all in them is 0."""
    out = []
    for number, (name, wire, _) in PACKET.items():
        if name == "pieces":
            out.extend(map(encode_piece, packet.get("pieces", ())))
        elif name in NESTED and name in packet:
            values = dict(packet[name])
            if name == "ack":
                values["ranges"] = b"".join(map(varint, values.get("ranges", ())))
            elif name == "close":
                values["reason"] = values.get("reason", "").encode()
            body = encode_fields(NESTED[name], values)
            out.append(varint(number << 3 | wire) + varint(len(body)) + body)
        elif name == "padding":
            if name in packet:
                out.append(varint(number << 3 | wire) + varint(packet[name]) + bytes(packet[name]))
        else:
            out.append(encode_fields({number: PACKET[number]}, packet))
    return b"".join(out)


def read_varint(data, at):
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Broken("a number that breaks off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if value > U64:
                break
            return value, at
    raise Broken("a number of more than 64 bits")


def fields(schema, data):
    """Pairs of name and value of the known fields; unknown ones are skipped."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        name, wire, most = schema.get(key >> 3, (None, key & 7, U64))
        if not 0 < key >> 3 < 1 << 29 or key & 7 != wire:
            raise Broken(f"field {key >> 3} with wire type {key & 7}")
        if wire == 0:
            value, at = read_varint(data, at)
            if name and value > most:
                raise Broken(f"{name} is {value}")
        elif wire in (1, 2, 5):
            size, at = read_varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            if len(data) - at < size:
                raise Broken("a field that breaks off")
            value, at = data[at : at + size], at + size
            if wire == 1:
                value = int.from_bytes(value, "little")
        else:
            raise Broken(f"wire type {wire}")
        if name:
            yield name, value


def decode_packet(data):
    """A dict of the fields that are there. Raises Broken."""
    packet = {}
    for name, value in fields(PACKET, data):
        if name == "pieces":
            packet.setdefault(name, []).append(decode_piece(value))
            if len(packet[name]) > MAX_PIECES:
                raise Broken("too many pieces")
            continue
        if name == "padding":
            value = len(value) + packet.get(name, 0)
        elif name in packet and name in NESTED:
            raise Broken(f"two of {name}")
        packet[name] = DECODERS.get(name, lambda value: value)(value)
    return packet


def decode_piece(data):
    piece = dict(fields(PIECE, data))
    length, offset, size = piece.get("length", 0), piece.get("offset", 0), len(piece.get("data", b""))
    if piece.get("kind", 0) > 1:
        raise Broken(f"a piece of kind {piece['kind']}")
    if length and (size == 0 or offset + size > length) or not length and offset:
        raise Broken(f"a piece of {size} bytes at {offset} of {length}")
    return piece


def decode_ack(data):
    ack = dict(fields(ACK, data))
    packed, at, ranges = ack.get("ranges", b""), 0, []
    while at < len(packed):
        value, at = read_varint(packed, at)
        if value > U32:
            raise Broken("a run that is too long")
        ranges.append(value)
    if ranges:
        ack["ranges"] = ranges
    if ranges and len(ranges) % 2 == 0 or len(ranges) > 2 * MAX_RUNS - 1:
        raise Broken(f"{len(ranges)} ranges")
    list(runs(ack))
    return ack


def runs(ack):
    """(first, last) of each run of acknowledged numbers, from the highest down."""
    top = ack.get("largest", 0)
    for index, less in enumerate(ack.get("ranges") or [0]):
        bottom = top - less
        if bottom < 0:
            raise Broken("an acknowledgement of numbers below 0")
        if index % 2 == 0:
            yield bottom, top
        top = bottom - 1


def ack_of(accepted):
    """The acknowledgement of runs (first, last), the highest first."""
    accepted = accepted[:MAX_RUNS]
    ranges = []
    for index, (first, last) in enumerate(accepted):
        if index:
            ranges.append(accepted[index - 1][0] - last - 2)
        ranges.append(last - first)
    return {"largest": accepted[0][1], "ranges": [] if ranges == [0] else ranges}


def decode_close(data):
    close = dict(fields(CLOSE, data))
    if close.get("code", 0) > 65535:
        raise Broken(f"a close code {close['code']}")
    try:
        close["reason"] = close.get("reason", b"").decode()
    except UnicodeDecodeError:
        raise Broken("a reason that is not UTF-8") from None
    return close


def decode_token(data):
    if len(data) != TOKEN_BYTES:
        raise Broken(f"a reset token of {len(data)} bytes")
    return data


DECODERS = {
    "ack": decode_ack,
    "credit": lambda data: dict(fields(CREDIT, data)),
    "ping": bool,
    "close": decode_close,
    "reset_token": decode_token,
}


def is_eliciting(packet):
    return any(packet.get(name) or name in packet and name in NESTED for name in ELICITING)
