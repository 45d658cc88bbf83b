"""What a packet says on `udp` (PROTOCOL.md section 14.5), in protobuf, as a dict of the fields that are there."""

from events import varint
from udp_wire import TOKEN_BYTES, U32, U64, Broken

MAX_PIECES = 64
MAX_RUNS = 32

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
