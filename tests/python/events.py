"""Events as PROTOCOL.md section 7 writes them: JSON in text, protobuf before the payload in binary."""

import json


def encode_text(namespace, name, event_id, payload):
    header = {"namespace": namespace, "name": name, "id": event_id}
    return json.dumps({"header": header, "payload": payload}, ensure_ascii=False)


def decode_text(message):
    event = json.loads(message)
    return event["header"], event["payload"]


def encode_binary(fields, payload):
    """fields: protobuf number -> text or number."""
    header = b"".join(field(number, value) for number, value in fields.items())
    return varint(len(header)) + header + payload


def decode_binary(message):
    length, at = read_varint(message, 0)
    end = at + length
    fields = {}
    while at < end:
        key, at = read_varint(message, at)
        if key & 7 == 0:
            fields[key >> 3], at = read_varint(message, at)
        else:
            size, at = read_varint(message, at)
            fields[key >> 3] = message[at : at + size].decode()
            at += size
    return fields, message[end:]


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    text = value.encode()
    return varint(number << 3 | 2) + varint(len(text)) + text


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
