"""What the protocol promises on all channels. Each check is a coroutine that takes the gateway and raises if it is broken."""

import asyncio
import contextlib
import json
import urllib.request

from websockets.exceptions import ConnectionClosed, InvalidStatus

import secure
from channels import CHANNELS, PATIENCE_S, open_socket
from events import decode_binary, decode_text, encode_binary, encode_text
from outcome import Closed, Lost

CHUNK = secure.CHUNK_BYTES
HOUR_MS = 3_600_000


class Device:
    """A connection that has said @hello."""

    def __init__(self, channel, welcome):
        self.channel, self.welcome = channel, welcome

    async def request(self, namespace, name, event_id, payload):
        await self.channel.send(encode_text(namespace, name, event_id, payload))

    async def event(self):
        return decode_text(await self.channel.receive())

    async def control(self, message):
        """Sends a control message and gives its answer's word and object."""
        await self.channel.send(message)
        return control(await self.channel.receive())

    async def echo(self, event_id="echo"):
        """The session works, in both directions."""
        await self.request("Demo", "Echo", event_id, {"for": event_id})
        header, payload = await self.event()
        assert (header["reply_to"], payload) == (event_id, {"for": event_id}), (header, payload)

    async def end(self):
        """(what @goodbye said, the close code that may be believed), after anything else that was on the way."""
        goodbye = None
        while True:
            try:
                message = await self.channel.receive()
            except Closed as closed:
                return goodbye, closed.code
            if isinstance(message, str) and message.startswith("@goodbye"):
                _, goodbye = control(message)

    async def expect_close(self, code):
        goodbye, seen = await self.end()
        assert seen == code, f"closed with {seen}, {goodbye}"


def control(message):
    word, _, body = message.partition(" ")
    return word, json.loads(body) if body else None


async def hello(channel):
    await channel.send('@hello {"instance":"python"}')
    word, welcome = control(await channel.receive())
    assert word == "@welcome", word
    return Device(channel, welcome)


@contextlib.asynccontextmanager
async def login(gateway, **options):
    async with CHANNELS[gateway.channel].open(gateway, **options) as channel:
        yield await hello(channel)


async def api(gateway, method, path, body=None):
    """What the operator's API answers, as JSON."""
    headers = {"Authorization": f"Bearer {gateway.api_key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(gateway.api + path, data, headers, method=method)

    def call():
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.loads(answer.read() or b"null")

    return await asyncio.to_thread(call)


async def requests_survive_a_kill_of_the_backend(gateway):
    """The other side holds these requests, kills the backend when all came, and lets the next one's go."""
    padding = "ø" * CHUNK
    async with login(gateway) as device:
        for n in range(gateway.crash_requests):
            payload = {"n": n, "hold": True, "padding": padding if n == 3 else ""}
            await device.request("Crash", "Echo", f"c-{n}", payload)
        for n in range(gateway.crash_requests):
            header, payload = await device.event()
            assert (header["reply_to"], header["seq"], payload["n"]) == (f"c-{n}", n + 1, n), header
        assert await device.control("@ping") == ("@pong", None)
        await device.echo()


async def welcome_says_what_matters(gateway):
    async with login(gateway) as device:
        assert len(device.welcome["session"]) == 36, device.welcome
        for field in ("heartbeat_ms", "max_message", "window"):
            assert device.welcome[field] > 0, device.welcome


async def a_browser_s_credential_is_taken(gateway):
    async with login(gateway, browser=True) as device:
        await device.echo()


async def text_is_echoed(gateway):
    async with login(gateway) as device:
        await device.request("Demo", "Echo", "t-1", {"words": "grüße", "n": [1, 2.5, None]})
        header, payload = await device.event()
        expected = {"namespace": "Demo", "name": "Echo.Reply", "id": "r-1", "reply_to": "t-1", "seq": 1}
        assert header == expected, header
        assert payload == {"words": "grüße", "n": [1, 2.5, None]}, payload


async def binary_is_echoed(gateway):
    async with login(gateway) as device:
        for n, payload in enumerate((bytes(range(256)) * 10, b""), 1):
            await device.channel.send(encode_binary({1: "Demo", 2: "Echo", 3: f"b-{n}"}, payload))
            fields, echoed = decode_binary(await device.channel.receive())
            assert fields == reply_fields(n, f"b-{n}"), fields
            assert echoed == payload


def reply_fields(seq, reply_to):
    return {1: "Demo", 2: "Echo.Reply", 3: f"r-{seq}", 5: reply_to, 6: seq}


async def long_messages_pass_both_ways(gateway):
    """Each length that matters on `ws`, as the length of a request and as that of a reply."""
    async with login(gateway) as device:
        seq = 0
        for length in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, device.welcome["max_message"]):
            for header_of in (lambda _: {1: "Demo", 2: "Echo", 3: "l"}, lambda seq: reply_fields(seq, "l")):
                seq += 1
                payload = bytes(i % 251 for i in range(length - len(encode_binary(header_of(seq), b""))))
                message = encode_binary({1: "Demo", 2: "Echo", 3: "l"}, payload)
                if len(message) > device.welcome["max_message"]:
                    message = message[: device.welcome["max_message"]]
                await device.channel.send(message)
                fields, echoed = decode_binary(await device.channel.receive())
                assert fields == reply_fields(seq, "l"), fields
                assert echoed == decode_binary(message)[1]
        # Three bytes each: some are cut.
        await device.request("Demo", "Echo", "cut", "€" * CHUNK)
        header, payload = await device.event()
        assert header["seq"] == seq + 1 and payload == "€" * CHUNK, header


async def a_message_over_the_limit_is_closed_with_1009(gateway):
    async with login(gateway) as device:
        # The server need not read the rest.
        with contextlib.suppress(ConnectionClosed):
            await device.channel.send(bytes(device.welcome["max_message"] + 1))
        await device.expect_close(1009)


async def an_error_takes_the_reply_s_place(gateway):
    async with login(gateway) as device:
        await device.request("Nowhere", "X", "e-1", {})
        header, payload = await device.event()
        assert header == {"namespace": "System", "name": "Error", "reply_to": "e-1", "seq": 1}, header
        assert payload["code"] == "no_route" and payload["retryable"] is False, payload
        assert payload["message"], payload
        await device.channel.send("not json")
        header, payload = await device.event()
        assert (header["seq"], payload["code"]) == (2, "bad_request"), (header, payload)
        await device.channel.send(encode_binary({1: "Nowhere", 2: "X"}, b""))
        fields, payload = decode_binary(await device.channel.receive())
        assert (fields, json.loads(payload)["code"]) == ({1: "System", 2: "Error", 6: 3}, "no_route"), fields


async def replies_keep_the_order_of_requests(gateway):
    async with login(gateway) as device:
        for n in range(20):
            await device.request("Demo", "Echo", f"o-{n}", {"n": n, "delay_ms": (20 - n) * 15})
        for n in range(20):
            header, payload = await device.event()
            assert (header["reply_to"], header["seq"], payload["n"]) == (f"o-{n}", n + 1, n), header


async def requests_may_follow_hello_at_once(gateway):
    async with CHANNELS[gateway.channel].open(gateway) as channel:
        await channel.send("@hello")
        await channel.send(encode_text("Demo", "Echo", "early", 1))
        device = Device(channel, control(await channel.receive()))
        header, _ = await device.event()
        assert (header["reply_to"], header["seq"]) == ("early", 1), header


async def control_messages_are_answered(gateway):
    async with login(gateway) as device:
        assert await device.control("@ping") == ("@pong", None)
        word, first = await device.control('@update {"attributes":{"room":"kitchen","volume":3}}')
        assert word == "@updated", (word, first)
        word, second = await device.control('@update\r\n{"attributes":{"muted":true}}')
        assert word == "@updated" and second["version"] > first["version"], second
        for message, word, code in (
            ("@ack {}", "ack", "unsupported"),
            ("@dance", "dance", "unknown_control"),
            ('@update {"attributes":{"list":[1]}}', "update", "invalid_update"),
        ):
            assert await device.control(message) == ("@error", {"control": word, "code": code}), message
        # None of them was a request.
        await device.request("Demo", "Echo", "first", {})
        header, _ = await device.event()
        assert header["seq"] == 1, header


async def transport_pings_are_answered(gateway):
    async with login(gateway) as device:
        await device.channel.ping()


async def a_device_that_only_answers_pings_lives(gateway):
    async with login(gateway) as device:
        # The silence is the subject.
        await asyncio.sleep(gateway.close_after_ms / 1000 * 1.5)
        await device.echo()


async def pushes_are_received(gateway):
    async with login(gateway) as device:
        body = {"to": {"device": gateway.device}, "namespace": "Alerts", "name": "Fire"}
        for payload in ({"level": 5}, {"long": "!" * 2 * CHUNK}):
            result = await api(gateway, "POST", "/v1/messages", body | {"payload": payload})
            header, received = await device.event()
            assert (header["namespace"], header["name"], received) == ("Alerts", "Fire", payload), header
            assert header["id"] == result["id"] and "seq" not in header, (header, result)
            assert result["results"][0]["status"] == "written", result


async def a_second_login_replaces_the_first(gateway):
    async with login(gateway) as first, login(gateway) as second:
        goodbye, code = await first.end()
        assert (goodbye["code"], goodbye["reconnect"], code) == ("replaced", False, 4000), (goodbye, code)
        await second.echo()


async def an_operator_s_close_is_final(gateway):
    async with login(gateway) as device:
        deleted, (goodbye, code) = await asyncio.gather(
            api(gateway, "DELETE", f"/v1/devices/{gateway.device}"), device.end()
        )
        expected = ("closed_by_operator", False, 4001)
        assert (goodbye["code"], goodbye["reconnect"], code) == expected, (deleted, goodbye, code)


async def a_device_s_own_close_is_answered(gateway):
    async with login(gateway) as device:
        await device.channel.close(1000)
        if gateway.channel != "wss":
            await expect_no_word(device)


async def expect_no_word(device):
    """The connection is over, and no close record came."""
    try:
        raise AssertionError(f"after the end: {await device.channel.receive()}")
    except Lost:
        pass


async def bad_credentials_are_refused(gateway):
    async def refusal(authorization):
        try:
            async with open_socket(gateway, authorization):
                raise AssertionError("admitted")
        except InvalidStatus as refused:
            answer = refused.response
        assert answer.headers["Content-Type"] == "application/problem+json", answer.headers
        problem = json.loads(answer.body)
        assert problem["status"] == answer.status_code and problem["retryable"] is False, problem
        return answer.status_code, problem["code"], answer.headers.get("WWW-Authenticate")

    for authorization, *expected in REFUSED[gateway.channel](gateway):
        seen = await refusal(authorization)
        assert seen == tuple(expected), (authorization, seen, expected)


def refused_tokens(gateway):
    yield None, 401, "token_missing", "Bearer"
    yield f"Bearer {gateway.bad_token}", 401, "token_invalid", 'Bearer error="invalid_token"'
    yield f"Holdfast {handshake(gateway).credential}", 400, "wrong_channel", None


def refused_handshakes(gateway):
    yield None, 401, "credential_missing", "Holdfast"
    yield f"Bearer {gateway.token}", 400, "wrong_channel", None
    yield "Holdfast AAAA", 400, "bad_credential", None
    others = gateway.identity | {"key_id": "nobody-has-this"}
    for attempt, code in (
        (handshake(gateway, key=bytes(32)), "handshake_failed"),
        (handshake(gateway, channel="udp"), "handshake_failed"),
        (handshake(gateway, identity=gateway.identity | {"key_version": 2}), "handshake_failed"),
        (handshake(gateway, identity=others), "key_unknown"),
        (handshake(gateway, time_ms=secure.now_ms() - HOUR_MS), "clock_skew"),
    ):
        yield f"Holdfast {attempt.credential}", 401, code, "Holdfast"


def handshake(gateway, **changes):
    inputs = {"identity": gateway.identity, "key": gateway.key, "time_ms": secure.now_ms()}
    return secure.Handshake(**inputs | changes)


REFUSED = {"wss": refused_tokens, "ws": refused_handshakes}

# The first is first because the other side waits for it.
CHECKS = [
    requests_survive_a_kill_of_the_backend,
    welcome_says_what_matters,
    text_is_echoed,
    binary_is_echoed,
    long_messages_pass_both_ways,
    a_message_over_the_limit_is_closed_with_1009,
    an_error_takes_the_reply_s_place,
    replies_keep_the_order_of_requests,
    requests_may_follow_hello_at_once,
    control_messages_are_answered,
    transport_pings_are_answered,
    a_device_that_only_answers_pings_lives,
    pushes_are_received,
    a_second_login_replaces_the_first,
    an_operator_s_close_is_final,
    a_device_s_own_close_is_answered,
]
WEB_SOCKET_CHECKS = [
    a_browser_s_credential_is_taken,
    bad_credentials_are_refused,
]
