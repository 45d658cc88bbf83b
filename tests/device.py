#!/usr/bin/env python3
"""A Holdfast device in Python, written from the device protocol alone and a plain WebSocket library.

It proves that the protocol can be spoken without our SDK. Run by tests/python_device.rs, which passes where the gateway is
and what to present as JSON in argv[1]:

    {"wss": url, "ca": path, "token": jwt, "bad_token": jwt, "device": id, "api": url, "api_key": secret}

Prints one TAP line per check and exits 1 if any failed.
"""

import asyncio
import json
import ssl
import sys
import traceback
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PATIENCE_S = 20


class Device:
    """A connection that has said @hello."""

    def __init__(self, socket, welcome):
        self.socket = socket
        self.welcome = welcome

    async def send(self, namespace, name, event_id, payload):
        header = {"namespace": namespace, "name": name, "id": event_id}
        await self.socket.send(json.dumps({"header": header, "payload": payload}))

    async def receive(self):
        return await asyncio.wait_for(self.socket.recv(), PATIENCE_S)

    async def event(self):
        message = json.loads(await self.receive())
        return message["header"], message["payload"]


def dial(gateway, token=None, **options):
    context = ssl.create_default_context(cafile=gateway["ca"])
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return connect(
        gateway["wss"], ssl=context, server_hostname="localhost", additional_headers=headers, **options
    )


async def hello(socket):
    await socket.send("@hello {}")
    word, _, body = (await asyncio.wait_for(socket.recv(), PATIENCE_S)).partition(" ")
    assert word == "@welcome", word
    return Device(socket, json.loads(body))


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


def encode_binary(fields, payload):
    """fields: protobuf number -> text."""
    header = b"".join(
        varint(number << 3 | 2) + varint(len(text.encode())) + text.encode() for number, text in fields.items()
    )
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


async def welcome_says_what_matters(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        assert len(device.welcome["session"]) == 36, device.welcome
        for field in ("heartbeat_ms", "max_message", "window"):
            assert device.welcome[field] > 0, device.welcome


async def a_browser_s_sub_protocol_token_is_taken(gateway):
    offered = ["holdfast.v1", "bearer." + gateway["token"]]
    async with dial(gateway, subprotocols=offered) as socket:
        assert socket.subprotocol == "holdfast.v1", socket.subprotocol
        await hello(socket)


async def text_is_echoed(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        await device.send("Demo", "Echo", "t-1", {"words": "grüße", "n": [1, 2.5, None]})
        header, payload = await device.event()
        expected = {"namespace": "Demo", "name": "Echo.Reply", "id": "r-1", "reply_to": "t-1", "seq": 1}
        assert header == expected, header
        assert payload == {"words": "grüße", "n": [1, 2.5, None]}, payload


async def binary_is_echoed(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        payload = bytes(range(256)) * 10
        await socket.send(encode_binary({1: "Demo", 2: "Echo", 3: "b-1"}, payload))
        fields, echoed = decode_binary(await device.receive())
        assert fields == {1: "Demo", 2: "Echo.Reply", 3: "r-1", 5: "b-1", 6: 1}, fields
        assert echoed == payload


async def an_error_takes_the_reply_s_place(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        await device.send("Nowhere", "X", "e-1", {})
        header, payload = await device.event()
        assert header == {"namespace": "System", "name": "Error", "reply_to": "e-1", "seq": 1}, header
        assert payload["code"] == "no_route" and payload["retryable"] is False, payload
        assert payload["message"], payload
        await socket.send("not json")
        header, payload = await device.event()
        assert (header["seq"], payload["code"]) == (2, "bad_request"), (header, payload)


async def replies_keep_the_order_of_requests(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        for n in range(20):
            await device.send("Demo", "Echo", f"o-{n}", {"n": n, "delay_ms": (20 - n) * 15})
        for n in range(20):
            header, payload = await device.event()
            assert (header["reply_to"], header["seq"], payload["n"]) == (f"o-{n}", n + 1, n), header


async def ping_is_answered(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        await socket.send("@ping")
        assert await device.receive() == "@pong"
        await asyncio.wait_for(await socket.ping(), PATIENCE_S)


async def a_push_is_received(gateway):
    async with dial(gateway, gateway["token"]) as socket:
        device = await hello(socket)
        result = await asyncio.to_thread(push, gateway, {"level": 5})
        header, payload = await device.event()
        assert (header["namespace"], header["name"], payload) == ("Alerts", "Fire", {"level": 5}), header
        assert header["id"] == result["id"], (header, result)
        assert result["results"][0]["status"] == "written", result


def push(gateway, payload):
    body = {"to": {"device": gateway["device"]}, "namespace": "Alerts", "name": "Fire", "payload": payload}
    headers = {"Authorization": f"Bearer {gateway['api_key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(gateway["api"] + "/v1/messages", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


async def a_second_login_replaces_the_first(gateway):
    async with dial(gateway, gateway["token"]) as first:
        await hello(first)
        async with dial(gateway, gateway["token"]) as second:
            await hello(second)
            word, _, body = (await asyncio.wait_for(first.recv(), PATIENCE_S)).partition(" ")
            assert word == "@goodbye" and json.loads(body)["reconnect"] is False, body
            try:
                await asyncio.wait_for(first.recv(), PATIENCE_S)
                raise AssertionError("the first session goes on")
            except ConnectionClosed as closed:
                assert closed.rcvd and closed.rcvd.code == 4000, closed


async def a_bad_token_is_a_401(gateway):
    for token, code in ((gateway["bad_token"], "token_invalid"), (None, "token_missing")):
        try:
            async with dial(gateway, token):
                raise AssertionError("admitted")
        except InvalidStatus as refused:
            answer = refused.response
            assert answer.status_code == 401, answer.status_code
            assert answer.headers["Content-Type"] == "application/problem+json", answer.headers
            assert json.loads(answer.body)["code"] == code, answer.body


CHECKS = [
    welcome_says_what_matters,
    a_browser_s_sub_protocol_token_is_taken,
    text_is_echoed,
    binary_is_echoed,
    an_error_takes_the_reply_s_place,
    replies_keep_the_order_of_requests,
    ping_is_answered,
    a_push_is_received,
    a_second_login_replaces_the_first,
    a_bad_token_is_a_401,
]


async def main():
    gateway = json.loads(sys.argv[1])
    print(f"1..{len(CHECKS)}")
    failed = 0
    for number, check in enumerate(CHECKS, 1):
        name = check.__name__.replace("_s_", "'s_").replace("_", " ")
        try:
            await check(gateway)
            print(f"ok {number} - {name}", flush=True)
        except Exception:  # A check that fails must not keep the others from running.
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            print("".join("# " + line + "\n" for line in traceback.format_exc().splitlines()), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
