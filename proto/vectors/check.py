#!/usr/bin/env python3
"""Checks ws.json and udp.json without any of the project's code: written from PROTOCOL.md and the Noise specification, on Python's hashlib and
the package `cryptography` (AES-GCM and X25519). It makes every value again from the inputs; prints what it checked, or fails.

    python3 -m pip install cryptography && python3 proto/vectors/check.py
"""

import base64
import hashlib
import hmac
import json
import pathlib
import re
import string

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NOISE = b"Noise_NNpsk0_25519_AESGCM_SHA256"
CHUNK = 61440
REKEY = 1 << 20
MAX_CHALLENGE = 1024
KINDS = {"text": 0, "binary": 1, "control": 2}


class Rejected(Exception):
    pass


def unhex(text):
    return bytes.fromhex(text)


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    """Takes the one form only: no padding, no other alphabet, no spare bits."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        raise Rejected("not_base64")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64(data) != text:
        raise Rejected("not_base64")
    return data


def lp(data):
    return bytes([len(data)]) + data


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def device_key(master, v):
    info = lp(b"holdfast device key 1") + b"".join(lp(v[f].encode()) for f in ("product", "class", "device"))
    info += v["key_version"].to_bytes(4, "big")
    return mac(mac(bytes(32), master), info + b"\x01")


def identity(v):
    names = b"".join(lp(v[f].encode()) for f in ("key_id", "product", "class", "device"))
    return b"\x01" + names + v["key_version"].to_bytes(4, "big")


class Noise:
    """The SymmetricState of the Noise specification, and the messages of NNpsk0."""

    def __init__(self, prologue, psk, private=None):
        self.h = NOISE.ljust(32, b"\0") if len(NOISE) <= 32 else hashlib.sha256(NOISE).digest()
        self.ck = self.h
        self.psk = psk
        self.private = private and X25519PrivateKey.from_private_bytes(private)
        self.mix_hash(prologue)

    def mix_hash(self, data):
        self.h = hashlib.sha256(self.h + data).digest()

    def hkdf(self, material, count):
        temp, out = mac(self.ck, material), [b""]
        for i in range(count):
            out.append(mac(temp, out[-1] + bytes([i + 1])))
        return out[1:]

    def set_key(self, key):
        self.key, self.n = key, 0

    def mix_key(self, material):
        self.ck, key = self.hkdf(material, 2)
        self.set_key(key)

    def mix_key_and_hash(self, material):
        self.ck, extra, key = self.hkdf(material, 3)
        self.mix_hash(extra)
        self.set_key(key)

    def encrypt(self, plain):
        sealed = AESGCM(self.key).encrypt(nonce(self.n), plain, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt(self, sealed):
        try:
            plain = AESGCM(self.key).decrypt(nonce(self.n), sealed, self.h)
        except InvalidTag:
            raise Rejected("not_authentic") from None
        self.n += 1
        self.mix_hash(sealed)
        return plain

    def write_e(self):
        public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.mix_hash(public)
        self.mix_key(public)
        return public

    def read_e(self, message):
        self.remote = X25519PublicKey.from_public_bytes(message[:32])
        self.mix_hash(message[:32])
        self.mix_key(message[:32])
        return message[32:]

    def ee(self):
        self.mix_key(self.private.exchange(self.remote))

    def split(self):
        return self.hkdf(b"", 2)


def nonce(n):
    return bytes(4) + n.to_bytes(8, "big")


def read_message_1(prologue, psk, message):
    server = Noise(prologue, psk)
    server.mix_key_and_hash(psk)
    return server, server.decrypt(server.read_e(message))


def check_handshake(v):
    prologue = b"holdfast/1 " + v["channel"].encode() + b"\0" + identity(v)
    psk = unb64(v["device_key"])
    assert unhex(v["prologue"]) == prologue and unhex(v["identity"]) == identity(v)
    payload = b"" if v["now_ms"] is None else v["now_ms"].to_bytes(8, "big")
    device = Noise(prologue, psk, unhex(v["device_ephemeral_private"]))
    device.mix_key_and_hash(psk)
    message1 = device.write_e() + device.encrypt(payload)
    assert message1 == unhex(v["message_1"])
    assert b64(identity(v) + message1) == v["credential"]
    server, got = read_message_1(prologue, psk, message1)
    assert got == payload
    server.private = X25519PrivateKey.from_private_bytes(unhex(v["server_ephemeral_private"]))
    message2 = server.write_e()
    server.ee()
    message2 += server.encrypt(b"")
    assert message2 == unhex(v["message_2"])
    rest = device.read_e(message2)
    device.ee()
    assert device.decrypt(rest) == b""
    assert read_challenge(v["challenge"]) == message2
    assert v["challenge"] == '@challenge {"noise":"' + b64(message2) + '"}'
    for side in (device, server):
        assert side.split() == [unhex(v["to_server"]), unhex(v["to_device"])]


def finish_handshake(v):
    """The device's side, which made message 1 and is given `challenge`."""
    prologue = b"holdfast/1 " + v["channel"].encode() + b"\0" + identity(v)
    assert unhex(v["prologue"]) == prologue
    device = Noise(prologue, unb64(v["device_key"]), unhex(v["device_ephemeral_private"]))
    device.mix_key_and_hash(unb64(v["device_key"]))
    device.write_e()
    device.encrypt(b"" if v["now_ms"] is None else v["now_ms"].to_bytes(8, "big"))
    rest = device.read_e(read_challenge(v["challenge"]))
    device.ee()
    assert device.decrypt(rest) == b""


def read_credential(text):
    if len(text) > 1024:
        raise Rejected("too_long")
    data = unb64(text)
    at = 0

    def take(n):
        nonlocal at
        if len(data) - at < n:
            raise Rejected("cut_off")
        at += n
        return data[at - n : at].decode("latin-1")

    def name(reason, least, most, alphabet):
        text = take(ord(take(1)))
        if not least <= len(text) <= most or set(text) - set(alphabet):
            raise Rejected(reason)
        return text

    if take(1) != "\x01":
        raise Rejected("version")
    plain = string.ascii_letters + string.digits + "._-"
    visible = "".join(map(chr, range(0x21, 0x7F)))
    v = {
        "key_id": name("key_id", 1, 32, plain),
        "product": name("product", 0, 64, visible),
        "class": name("class", 0, 64, visible),
        "device": name("device", 1, 128, plain + ":"),
        "key_version": int.from_bytes(take(4).encode("latin-1"), "big"),
    }
    if len(data) - at not in (48, 56):
        raise Rejected("message_length")
    return v, data[:at], data[at:]


def read_challenge(text):
    parts = re.fullmatch(r"@challenge[ \t\r\n]+(.*)", text, re.DOTALL)
    if not parts or len(text.encode()) > MAX_CHALLENGE:
        raise Rejected("challenge")
    try:
        message = unb64(json.loads(parts[1])["noise"])
    except (ValueError, KeyError, TypeError):
        raise Rejected("challenge") from None
    if len(message) != 48:
        raise Rejected("challenge")
    return message


class Direction:
    def __init__(self, key, counter=0):
        self.key, self.counter = key, counter

    def advance(self):
        self.counter += 1
        if self.counter % REKEY == 0:
            self.key = AESGCM(self.key).encrypt(nonce(2**64 - 1), bytes(32), b"")[:32]

    def seal(self, kind, more, data):
        self.check_end()
        record = AESGCM(self.key).encrypt(nonce(self.counter), bytes([kind | more << 7]) + data, b"")
        self.advance()
        return record

    def check_end(self):
        if self.counter == 2**64 - 1:
            raise Rejected("ended")

    def open(self, record):
        self.check_end()
        if not 17 <= len(record) <= CHUNK + 17:
            raise Rejected("not_authentic")
        try:
            plain = AESGCM(self.key).decrypt(nonce(self.counter), record, b"")
        except InvalidTag:
            raise Rejected("not_authentic") from None
        kind, more, data = plain[0] & 0x7F, plain[0] >> 7, plain[1:]
        if kind > 2 or more and (kind == 2 or len(data) != CHUNK):
            raise Rejected("form")
        self.advance()
        return kind, more, data


def check_sequence(s):
    sender = Direction(unhex(s["key"]), s["first_counter"])
    receiver = Direction(unhex(s["key"]), s["first_counter"])
    for v in s["records"]:
        assert (sender.counter, sender.key) == (v["counter"], unhex(v["key"]))
        record = unhex(v["record"])
        assert sender.seal(KINDS[v["kind"]], 0, unhex(v["data"])) == record
        assert receiver.open(record) == (KINDS[v["kind"]], 0, unhex(v["data"]))
    if s.get("ended"):
        rejected(lambda: sender.seal(0, 0, b""), "ended")
        rejected(lambda: receiver.open(bytes(17)), "ended")


def check_messages(s):
    sender = Direction(unhex(s["key"]))
    for m in s["messages"]:
        data = bytes(i % 251 for i in range(m["length"]))
        parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
        records = [sender.seal(KINDS[m["kind"]], i + 1 < len(parts), part) for i, part in enumerate(parts)]
        made = [{"length": len(r), "sha256": hashlib.sha256(r).hexdigest()} for r in records]
        assert made == m["records"], m["length"]


CLOSES = {"form": 1002, "interleaved": 1002, "empty_chunk": 1002, "too_big": 1009, "too_long": 1009, "not_utf8": 1007}


class Receiver:
    """Records to messages."""

    def __init__(self, key, max_message):
        self.direction, self.max_message = Direction(key), max_message
        self.kind, self.data = None, b""

    def take(self, record):
        if len(record) > CHUNK + 17:
            raise Rejected("too_long")
        kind, more, data = self.direction.open(record)
        if kind == KINDS["control"]:
            return "control", None
        if self.kind not in (None, kind):
            raise Rejected("interleaved")
        if self.kind is not None and not data:
            raise Rejected("empty_chunk")
        self.kind, self.data = kind, self.data + data
        if len(self.data) > self.max_message:
            raise Rejected("too_big")
        if more:
            return "part", None
        whole, self.kind, self.data = (kind, self.data), None, b""
        if kind == KINDS["text"]:
            try:
                whole[1].decode()
            except UnicodeDecodeError:
                raise Rejected("not_utf8") from None
        return "message", whole


def check_received(s):
    receiver = Receiver(unhex(s["key"]), s["max_message"])
    for counter, v in enumerate(s["records"]):
        unit = unhex(v["unit"])
        data = (unit * (v["length"] // max(len(unit), 1) + 1))[: v["length"]]
        record = AESGCM(unhex(s["key"])).encrypt(nonce(counter), unhex(v["kind"]) + data, b"")
        assert (len(record), hashlib.sha256(record).hexdigest()) == (v["record_length"], v["record_sha256"])
        if "close" in v:
            assert v is s["records"][-1] and CLOSES[v["result"]] == v["close"]
            rejected(lambda: receiver.take(record), v["result"])
            continue
        result, whole = receiver.take(record)
        assert result == v["result"], s["about"]
        if whole is not None:
            made = {"length": len(whole[1]), "sha256": hashlib.sha256(whole[1]).hexdigest()}
            kind = next(name for name, value in KINDS.items() if value == whole[0])
            assert v["message"] == {"kind": kind, **made}, s["about"]


def read_control(data):
    if data in (b"\0", b"\1"):
        return {"type": "pong" if data[0] else "ping"}
    if len(data) < 3 or data[0] != 2 or len(data) > 3 + 123:
        raise Rejected("control")
    code = int.from_bytes(data[1:3], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise Rejected("control")
    try:
        return {"type": "close", "code": code, "reason": data[3:].decode()}
    except UnicodeDecodeError:
        raise Rejected("control") from None


# ---- udp ----

PARAMETERS = (("attempt", 8, 0, 2**64 - 1), ("max_datagram", 2, 512, 1472), ("receive_bytes", 4, 4096, 1 << 24),
              ("receive_messages", 2, 4, 1024))
WORD = set((string.ascii_lowercase + string.digits + "_").encode())


def parameters(v):
    return b"".join(v[name].to_bytes(size, "big") for name, size, *_ in PARAMETERS)


def hello(v):
    credential = identity(v) + unhex(v["message_1"])
    front = b"\x01\x01" + parameters(v) + lp(unhex(v["cookie"])) + len(credential).to_bytes(2, "big") + credential
    return front.ljust(256, b"\0")


def read_datagram(data):
    """A datagram's fields; anything that has not exactly the form of its type is rejected."""
    if len(data) > 1472:
        raise Rejected("length")
    rest = data

    def take(n):
        nonlocal rest
        if len(rest) < n:
            raise Rejected("length")
        head, rest = rest[:n], rest[n:]
        return head

    def number(size, least=0, most=2**64 - 1):
        value = int.from_bytes(take(size), "big")
        if not least <= value <= most:
            raise Rejected("value")
        return value

    kind = number(1)
    if kind in (1, 2, 3, 4):
        number(1, 1, 1)
    if kind == 1:
        if len(data) < 256:
            raise Rejected("length")
        v = {"type": "hello", "parameters": data[2:18]}
        v |= {name: number(*bounds) for name, *bounds in PARAMETERS}
        v["cookie"] = take(number(1, 0, 32))
        v["credential"] = take(number(2, 1, 353))
        if any(rest):
            raise Rejected("padding")
        return v
    if kind == 2:
        v = {"type": "retry", "attempt": number(8), "cookie": take(number(1, 1, 32))}
    elif kind == 3:
        v = {"type": "challenge", "attempt": number(8), "connection_id": take(8), "message_2": take(48)}
    elif kind == 4:
        v = {"type": "refused", "attempt": number(8), "status": number(2, 400, 599), "retry_after_ms": number(4),
             "retryable": bool(number(1, 0, 1)), "code": take(number(1, 1, 64))}
        if set(v["code"]) - WORD:
            raise Rejected("value")
    elif kind == 5:
        v = {"type": "reset", "connection_id": take(8), "token": take(16)}
    elif kind == 0x40:
        if len(data) < 29:
            raise Rejected("length")
        return {"type": "data", "connection_id": take(8), "low": number(4)}
    else:
        raise Rejected("type")
    if rest:
        raise Rejected("length")
    return v


def check_udp_handshake(v):
    assert unhex(v["parameters"]) == parameters(v) and unhex(v["identity"]) == identity(v)
    prologue = b"holdfast/1 udp\0" + identity(v) + parameters(v)
    assert unhex(v["prologue"]) == prologue
    psk = unb64(v["device_key"])
    payload = b"" if v["now_ms"] is None else v["now_ms"].to_bytes(8, "big")
    device = Noise(prologue, psk, unhex(v["device_ephemeral_private"]))
    device.mix_key_and_hash(psk)
    assert device.write_e() + device.encrypt(payload) == unhex(v["message_1"])
    assert hello(v) == unhex(v["hello"])
    server, got = judge(unhex(v["hello"]), psk)
    assert got == payload
    server.private = X25519PrivateKey.from_private_bytes(unhex(v["server_ephemeral_private"]))
    message2 = server.write_e()
    server.ee()
    message2 += server.encrypt(b"")
    assert message2 == unhex(v["message_2"])
    made = b"\x03\x01" + v["attempt"].to_bytes(8, "big") + unhex(v["connection_id"]) + message2
    assert made == unhex(v["challenge"])
    finish_udp(v, device)
    for side in (device, server):
        assert side.split() == [unhex(v["to_server"]), unhex(v["to_device"])]


def judge(datagram, psk):
    """What a server makes of a HELLO."""
    v = read_datagram(datagram)
    _, front, message1 = read_credential(b64(v["credential"]))
    return read_message_1(b"holdfast/1 udp\0" + front + v["parameters"], psk, message1)


def finish_udp(v, device=None):
    """The device's side, which made the HELLO and is given `challenge`."""
    if device is None:
        psk = unb64(v["device_key"])
        device = Noise(unhex(v["prologue"]), psk, unhex(v["device_ephemeral_private"]))
        device.mix_key_and_hash(psk)
        device.write_e()
        device.encrypt(b"" if v["now_ms"] is None else v["now_ms"].to_bytes(8, "big"))
    read = read_datagram(unhex(v["challenge"]))
    assert (read["attempt"], read["connection_id"]) == (v["attempt"], unhex(v["connection_id"]))
    rest = device.read_e(read["message_2"])
    device.ee()
    assert device.decrypt(rest) == b""


def check_answer(v):
    read = read_datagram(unhex(v["datagram"]))
    said = {name: value for name, value in v.items() if name != "datagram"}
    said |= {name: said[name].encode() if name == "code" else unhex(said[name]) for name in ("code", "cookie") if name in said}
    assert read == said


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


class Proto:
    """Protobuf's wire format, as far as it is needed."""

    def __init__(self, data):
        self.data = data

    def take(self, n):
        if len(self.data) < n:
            raise Rejected("truncated")
        head, self.data = self.data[:n], self.data[n:]
        return head

    def varint(self, most=2**64 - 1):
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise Rejected("varint")
        if value > most:
            raise Rejected("range")
        return value

    def value(self, wire, most=2**64 - 1):
        if wire == 0:
            return self.varint(most)
        if wire == 1:
            return int.from_bytes(self.take(8), "little")
        if wire == 2:
            return self.take(self.varint())
        if wire == 5:
            return int.from_bytes(self.take(4), "little")
        raise Rejected("wire type")

    def fields(self, schema):
        """Yields name and value of the fields that the schema knows: {number: (name, wire type, greatest number)}."""
        while self.data:
            key = self.varint()
            name, wire, most = schema.get(key >> 3, (None, key & 7, 2**64 - 1))
            if key >> 3 == 0 or key & 7 != wire:
                raise Rejected("wire type")
            value = self.value(key & 7, most)
            if name:
                yield name, value


U32, U64 = 2**32 - 1, 2**64 - 1
PACKET = {1: ("ack", 2, U64), 2: ("piece", 2, U64), 3: ("credit", 2, U64), 4: ("path_challenge", 1, U64),
          5: ("path_response", 1, U64), 6: ("ping", 0, U64), 7: ("close", 2, U64), 8: ("reset_token", 2, U64), 9: ("padding", 2, U64)}
ACK = {1: ("largest", 0, U64), 2: ("ranges", 2, U64), 3: ("delay_us", 0, U32)}
PIECE = {1: ("message", 0, U64), 2: ("kind", 0, U32), 3: ("length", 0, U32), 4: ("offset", 0, U32), 5: ("data", 2, U64)}
CREDIT = {1: ("messages", 0, U64), 2: ("bytes", 0, U64)}
CLOSE = {1: ("code", 0, U32), 2: ("reason", 2, U64), 3: ("messages", 0, U64)}


def read_packet(data):
    packet = {}
    for name, value in Proto(data).fields(PACKET):
        if name == "piece":
            packet.setdefault("pieces", []).append(read_piece(value))
            if len(packet["pieces"]) > 64:
                raise Rejected("pieces")
            continue
        if name in packet and name != "padding":
            raise Rejected("repeated")
        if name == "ack":
            value = dict(Proto(value).fields(ACK))
            if "ranges" in value:
                value["ranges"] = read_ranges(value["ranges"])
            accepted(value)
        elif name == "credit":
            value = dict(Proto(value).fields(CREDIT))
        elif name == "close":
            value = dict(Proto(value).fields(CLOSE))
            try:
                value = value | ({"reason": value["reason"].decode()} if "reason" in value else {})
            except UnicodeDecodeError:
                raise Rejected("reason") from None
            if value.get("code", 0) > 65535:
                raise Rejected("code")
        elif name == "ping":
            value = bool(value)
        elif name == "padding":
            value = len(value)
        elif name == "reset_token":
            if len(value) != 16:
                raise Rejected("reset token")
            value = value.hex()
        packet[name] = value
    return packet


def read_piece(data):
    piece = dict(Proto(data).fields(PIECE))
    length, offset = piece.get("length", 0), piece.get("offset", 0)
    end = offset + len(piece.get("data", b""))
    if piece.get("kind", 0) > 1 or length and (end > length or end == offset) or not length and offset:
        raise Rejected("piece")
    return piece | ({"data": piece["data"].hex()} if "data" in piece else {})


def read_ranges(packed):
    numbers, proto = [], Proto(packed)
    while proto.data:
        numbers.append(proto.varint(U32))
    return numbers


def accepted(ack):
    """The packet numbers that an acknowledgement speaks of, downwards."""
    ranges = ack.get("ranges", []) or [0]
    if len(ranges) % 2 == 0 or len(ranges) > 63:
        raise Rejected("acknowledgement")
    numbers, at = [], ack.get("largest", 0)
    for i, less in enumerate(ranges):
        if less > at:
            raise Rejected("acknowledgement")
        if i % 2 == 0:
            # A sender may speak of more than a test wants to list.
            numbers += range(at, max(at - less, at - 1000) - 1, -1)
        at -= less + 1
        if at < 0 and i + 1 < len(ranges):
            raise Rejected("acknowledgement")
    return numbers


def write_packet(p):
    def number(field, value):
        return varint(field << 3) + varint(value) if value else b""

    def sub(field, data):
        return varint(field << 3 | 2) + varint(len(data)) + data

    def optional(field, data):
        return sub(field, data) if data else b""

    out = b""
    if "ack" in p:
        a = p["ack"]
        packed = b"".join(map(varint, a.get("ranges", [])))
        out += sub(1, number(1, a.get("largest", 0)) + optional(2, packed) + number(3, a.get("delay_us", 0)))
    for piece in p.get("pieces", []):
        numbers = b"".join(number(f, piece.get(n, 0)) for f, n in ((1, "message"), (2, "kind"), (3, "length"), (4, "offset")))
        out += sub(2, numbers + optional(5, unhex(piece.get("data", ""))))
    if "credit" in p:
        out += sub(3, number(1, p["credit"].get("messages", 0)) + number(2, p["credit"].get("bytes", 0)))
    for field, name in ((4, "path_challenge"), (5, "path_response")):
        if name in p:
            out += varint(field << 3 | 1) + p[name].to_bytes(8, "little")
    out += number(6, int(p.get("ping", False)))
    if "close" in p:
        c = p["close"]
        out += sub(7, number(1, c.get("code", 0)) + optional(2, c.get("reason", "").encode()) + number(3, c.get("messages", 0)))
    out += optional(8, unhex(p.get("reset_token", "")))
    if "padding" in p:
        out += sub(9, bytes(p["padding"]))
    return out


def check_packet(v):
    assert read_packet(unhex(v["packet"])) == v["fields"], v["about"]
    if v["about"] not in ("unknown fields", "another order of fields"):
        assert write_packet(v["fields"]) == unhex(v["packet"]), v["about"]


def check_acknowledgement(v):
    assert sorted(v["accepted"], reverse=True) == accepted(v)


def generation(key, times):
    for _ in range(times):
        key = AESGCM(key).encrypt(nonce(2**64 - 1), bytes(32), b"")[:32]
    return key


def recover(low, expected):
    c = expected >> 32 << 32 | low
    if c <= expected - 2**31:
        return c + 2**32
    if c > expected + 2**31 and c >= 2**32:
        return c - 2**32
    return c


def open_data(first_key, expected, datagram):
    read = read_datagram(datagram)
    number = recover(read["low"], expected)
    key = generation(first_key, number >> 20)
    try:
        return number, key, AESGCM(key).decrypt(nonce(number), datagram[13:], datagram[:13])
    except InvalidTag:
        raise Rejected("not_authentic") from None


def check_data(v):
    datagram = unhex(v["datagram"])
    header = b"\x40" + unhex(v["connection_id"]) + (v["number"] % 2**32).to_bytes(4, "big")
    key = generation(unhex(v["first_key"]), v["number"] >> 20)
    assert key == unhex(v["key"])
    assert header + AESGCM(key).encrypt(nonce(v["number"]), unhex(v["packet"]), header) == datagram
    assert open_data(unhex(v["first_key"]), v["number"], datagram) == (v["number"], key, unhex(v["packet"]))
    read_packet(unhex(v["packet"]))


def check_replays(v):
    seen, largest = set(), -1
    for p in v["packets"]:
        good = p["number"] not in seen and p["number"] > largest - 256
        assert good == p["accepted"], v["about"]
        if good:
            seen.add(p["number"])
            largest = max(largest, p["number"])


def check_reset(v):
    token = mac(unhex(v["reset_key"]), unhex(v["connection_id"]))[:16]
    assert token == unhex(v["token"])
    assert unhex(v["datagram"]) == b"\x05" + unhex(v["connection_id"]) + token
    assert read_datagram(unhex(v["datagram"]))["token"] == token


def check_udp(vectors):
    assert vectors["noise"].encode() == NOISE
    for v in vectors["handshakes"]:
        check_udp_handshake(v)
    for v in vectors["rejected_handshakes"]:
        rejected(lambda: judge(unhex(v["hello"]), unb64(v["device_key"])), "not_authentic")
    for v in vectors["unverified_challenges"]:
        rejected(lambda: finish_udp(v), "not_authentic")
    for v in vectors["answers"]:
        check_answer(v)
    for v in vectors["rejected_datagrams"]:
        rejected(lambda: read_datagram(unhex(v["datagram"])))
    for v in vectors["packets"]:
        check_packet(v)
    for v in vectors["rejected_packets"]:
        rejected(lambda: read_packet(unhex(v["packet"])))
    for v in vectors["acknowledgements"]:
        check_acknowledgement(v)
    for v in vectors["data"]:
        check_data(v)
    for v in vectors["rejected_data"]:
        rejected(lambda: open_data(unhex(v["first_key"]), 0, unhex(v["datagram"])), "not_authentic")
    for v in vectors["packet_numbers"]:
        assert recover(v["low"], v["expected"]) == v["number"], v
    for v in vectors["replays"]:
        check_replays(v)
    for v in vectors["reset_tokens"]:
        check_reset(v)


def rejected(call, reason=None):
    try:
        call()
    except Rejected as error:
        assert reason in (None, str(error)), (reason, str(error))
    else:
        raise AssertionError("was not rejected")


def main():
    for name, check in (("ws", check_ws), ("udp", check_udp)):
        vectors = json.loads((pathlib.Path(__file__).parent / f"{name}.json").read_text())
        check(vectors)
        for list_name, value in vectors.items():
            if isinstance(value, list):
                print(f"{name} {list_name}: {len(value)} agree")


def check_ws(vectors):
    assert vectors["noise"].encode() == NOISE
    for v in vectors["device_keys"]:
        assert b64(device_key(unb64(v["master_key"]), v)) == v["device_key"]
        assert unhex(v["identity"]) == identity(v)
    for v in vectors["handshakes"]:
        check_handshake(v)
        read, front, message1 = read_credential(v["credential"])
        assert read == {field: v[field] for field in read}
        assert (front, message1) == (unhex(v["identity"]), unhex(v["message_1"]))
    for v in vectors["rejected_credentials"]:
        rejected(lambda: read_credential(v["credential"]), v["reason"])
    for v in vectors["rejected_handshakes"]:
        _, front, message1 = read_credential(v["credential"])
        prologue = b"holdfast/1 " + v["channel"].encode() + b"\0" + front
        rejected(lambda: read_message_1(prologue, unb64(v["device_key"]), message1), "not_authentic")
    for v in vectors["rejected_challenges"]:
        rejected(lambda: read_challenge(v["challenge"]))
    for v in vectors["accepted_challenges"]:
        assert read_challenge(v["challenge"]) == unhex(v["message_2"]), v["why"]
    for v in vectors["handshakes"]:
        finish_handshake(v)
    for v in vectors["unverified_challenges"]:
        rejected(lambda: finish_handshake(v), "not_authentic")
    for s in vectors["record_sequences"]:
        check_sequence(s)
    for s in vectors["message_sequences"]:
        check_messages(s)
    for s in vectors["received_sequences"]:
        check_received(s)
    for v in vectors["rejected_records"]:
        rejected(lambda: Direction(unhex(v["key"]), v["counter"]).open(unhex(v["record"])), v["reason"])
    for v in vectors["control_records"]:
        assert read_control(unhex(v["data"])) == {k: v[k] for k in v if k != "data"}
    for v in vectors["rejected_control_records"]:
        rejected(lambda: read_control(unhex(v["data"])))


main()
