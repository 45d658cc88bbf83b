"""That a device comes back as it must, and stays away when it must (PROTOCOL.md sections 3.3, 6.3, 10 and 11)."""

import asyncio
import contextlib
import time
import urllib.parse
from types import SimpleNamespace

from websockets.exceptions import InvalidStatus

import secure
from channels import CHANNELS, soon
from checks import api, login
from returning import CAP_S, FIRST_S, MAX_HINT_S, Program, Returning, StaysAway, refusal_of
from udp import Refused

# More than any bucket of attempts has.
MOST_ATTEMPTS = 200


def as_device(gateway, name):
    """The gateway, to this device: attempts are counted for each, and one must not be in another's way."""
    device = gateway.devices[name]
    key = secure.from_text(device["device_key"])
    return SimpleNamespace(**vars(gateway) | device | {"device": name, "key": key})


class Clock:
    """Of which parts can be skipped."""

    def __init__(self):
        self.skipped = 0

    def __call__(self):
        return time.monotonic() + self.skipped


class Waits(list):
    """Notes how long to wait, and has `wait` do it."""

    def __init__(self, wait=asyncio.sleep):
        self.wait = wait

    async def __call__(self, seconds):
        self.append(seconds)
        await self.wait(seconds)


class Way:
    """To the gateway, and it can be cut."""

    def __init__(self, gateway):
        self.to = urllib.parse.urlsplit(gateway.url)
        self.gateway, self.is_cut, self.writers = gateway, False, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        changed = {"url": f"{self.gateway.channel}://127.0.0.1:{port}"}
        self.gateway = SimpleNamespace(**vars(self.gateway) | changed)
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()

    def cut(self):
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()

    async def carry(self, reader, writer):
        self.writers.append(writer)
        if self.is_cut:
            return writer.transport.abort()
        further_reader, further = await asyncio.open_connection(self.to.hostname, self.to.port)
        self.writers.append(further)
        await asyncio.gather(copy(reader, further), copy(further_reader, writer))


async def copy(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def the_rules_decide_who_comes_back_and_when(gateway):
    """Sections 10 and 11, row by row."""
    no = {"reconnect": False}
    for code, goodbye, back, hint_s in (
        (None, None, True, 0),
        (1000, None, False, 0),
        (1001, {"code": "going_away", "retry_after_ms": 3100, "reconnect": True}, True, 3.1),
        (1001, {"code": "going_away", "retry_after_ms": 3_600_000}, True, MAX_HINT_S),
        (1002, None, True, 0),
        (1009, no, False, 0),
        (1013, {"retry_after_ms": 1}, True, 0.001),
        (4001, {"reconnect": True}, False, 0),
        (4002, {}, True, 0),
        (4004, None, False, 0),
        (4006, None, True, 0),
        (4321, None, True, 0),
        (None, no, False, 0),
    ):
        verdict = logged_in(gateway.channel, since=1000).ended(2000, code, goodbye)
        assert verdict.back == back, (code, goodbye)
        assert not back or (verdict.least_s, verdict.spread_s) == (hint_s, FIRST_S), verdict
    for status, retryable, hint_s, *expected in (
        (429, True, 2, True, 2),
        (503, True, 7200, True, MAX_HINT_S),
        (502, None, 0, True, 0),
        (401, False, 0, gateway.channel != "wss", MAX_HINT_S),
        (403, False, 0, gateway.channel != "wss", MAX_HINT_S),
    ):
        rules = Returning(gateway.channel)
        rules.attempt()
        verdict = rules.refused(1, SimpleNamespace(status=status, retryable=retryable, hint_s=hint_s))
        seen = [verdict.back, verdict.least_s] if verdict.back else [False, MAX_HINT_S]
        assert seen == expected, (status, retryable, verdict)


async def replaced_is_the_last_word_but_for_five_minutes_after_a_loss(gateway):
    """Section 6.3: whether the close says it, or `@goodbye` alone, and however often."""
    goodbye = {"code": "replaced", "reconnect": False}
    for code, said in ((4000, goodbye), (4000, None), (None, goodbye)):
        for earlier in (1000, 1001, 4002):
            rules = logged_in(gateway.channel, since=0)
            rules.ended(1, earlier)
            assert not rules.ended(2, code, said).back, "the server knows that the earlier one is over"
        rules = logged_in(gateway.channel, since=0)
        rules.ended(1000)
        for ended, back in ((1001, True), (1299, True), (1300, False)):
            assert rules.ended(ended, code, said).back == back, (code, said, ended)
    # What else says no is not softened.
    rules = logged_in(gateway.channel, since=0)
    rules.ended(1)
    assert not rules.ended(2, 4001, {"code": "closed_by_operator"}).back


def logged_in(channel, since):
    rules = Returning(channel)
    rules.attempt()
    rules.logged_in(since)
    return rules


async def a_lost_device_comes_back_with_a_backoff_that_grows_and_differs(gateway):
    attempts = 10
    clock = Clock()
    async with Way(as_device(gateway, "lost")) as way:

        async def until_enough(_):
            way.is_cut = len(waits) <= attempts

        waits = Waits(until_enough)
        async with Program(way.gateway, waits, clock) as program:
            device = await program.online()
            await device.echo()
            clock.skipped += 11
            way.cut()
            code, goodbye, _ = await program.left(device)
            assert (code, goodbye) == (None, None), (code, goodbye)
            device = await program.online()
            # All begins anew.
            await device.request("Demo", "Echo", "again", 1)
            header, _ = await device.event()
            assert (header["reply_to"], header["seq"]) == ("again", 1), header
    bounds = [min(CAP_S, FIRST_S * 2**failures) for failures in range(attempts + 1)]
    assert len(waits) == len(bounds) and CAP_S in bounds, waits
    assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds)), (waits, bounds)
    assert len(set(waits)) == len(waits) and max(waits) > FIRST_S, waits


async def while_nobody_is_there_a_device_heeds_the_hint(gateway):
    """The other side kills the backend when this request came, and starts the next one when somebody was refused."""
    waits = Waits()
    async with login(as_device(gateway, "witness")) as witness:
        await witness.request("Absent", "Now", "absent", {})
        await until_gone(gateway.api)
        async with Program(as_device(gateway, "patient"), waits) as program:
            await (await program.online()).echo()
        refusal, verdict = program.refusals[0], program.verdicts[0]
        assert (refusal.status, refusal.code, refusal.retryable) == (503, "unavailable", True), refusal
        heeded(refusal.hint_s, verdict, waits[0])


async def until_gone(url):
    at = urllib.parse.urlsplit(url)
    while True:
        try:
            _, writer = await soon(asyncio.open_connection(at.hostname, at.port))
        except ConnectionError:
            return
        writer.close()
        await asyncio.sleep(0.01)


def heeded(hint_s, verdict, wait):
    assert hint_s > 0 and verdict.least_s == hint_s, (hint_s, verdict)
    assert hint_s <= wait <= hint_s + verdict.spread_s, (hint_s, verdict, wait)


async def a_goodbye_s_hint_is_heeded(gateway):
    """The other side ends the frontend in good order when this request came, and starts it again."""
    waits = Waits()
    async with Program(as_device(gateway, "parting"), waits) as program:
        device = await program.online()
        await device.request("Leave", "Now", "leave", {})
        code, goodbye, verdict = await program.left(device)
        assert (code, goodbye["code"], goodbye["reconnect"]) == (1001, "going_away", True), (code, goodbye)
        await (await program.online()).echo()
    heeded(goodbye["retry_after_ms"] / 1000, verdict, waits[0])


async def who_was_closed_by_an_operator_stays_away(gateway):
    waits = Waits()
    async with Program(as_device(gateway, "closed"), waits) as program:
        device = await program.online()
        _, (code, goodbye, _) = await asyncio.gather(api(gateway, "DELETE", "/v1/devices/closed"), program.left(device))
        assert (code, goodbye["reconnect"]) == (4001, False), (code, goodbye)
        await stays_away(program)
    assert not waits, waits


async def stays_away(program):
    try:
        await program.online()
    except StaysAway:
        return
    raise AssertionError("came back")


async def a_device_that_was_replaced_soon_after_a_loss_comes_back_and_later_does_not(gateway):
    gateway, clock = as_device(gateway, "replaced"), Clock()
    async with Program(gateway, Waits(), clock) as program:
        program.rules.lost_at = clock()
        device = await program.online()
        async with login(gateway) as other:
            assert (await program.left(device))[0] == 4000
            device = await program.online()
            await other.expect_close(4000)
        clock.skipped += 300
        async with login(gateway) as other:
            assert (await program.left(device))[0] == 4000
            await stays_away(program)
            await other.echo()


async def a_denied_device_is_refused_and_does_not_hurry(gateway):
    async with Program(as_device(gateway, "denied"), None) as program:
        problem = await first_refusal(program)
    assert (problem.status, problem.code, problem.retryable) == (403, "denied", False), problem
    assert program.verdicts[0].least_s == MAX_HINT_S, program.verdicts


async def first_refusal(program):
    """And no further attempt."""

    class Enough(Exception):
        pass

    async def enough(_):
        raise Enough

    program.sleep = enough
    with contextlib.suppress(Enough):
        await program.online()
    assert len(program.refusals) == 1, program.refusals
    return program.refusals[0]


async def who_tries_too_often_is_let_in_after_the_hint(gateway):
    gateway, waits = as_device(gateway, "greedy"), Waits()
    refusal = None
    for _ in range(MOST_ATTEMPTS):
        try:
            async with CHANNELS[gateway.channel].open(gateway):
                pass
        except (InvalidStatus, Refused) as refused:
            refusal = refusal_of(refused)
            break
    assert (refusal.status, refusal.code, refusal.retryable) == (429, "too_many_attempts", True), refusal
    async with Program(gateway, waits) as program:
        program.rules.attempt()
        program.verdicts.append(program.rules.refused(program.clock(), refusal))
        await (await program.online()).echo()
    heeded(refusal.hint_s, program.verdicts[0], waits[0])
    assert not program.refusals, "the hint was too short"


async def a_token_that_does_not_hold_keeps_a_device_away(gateway):
    gateway = as_device(gateway, "lost")
    gateway.token = gateway.bad_token
    async with Program(gateway, Waits()) as program:
        await stays_away(program)
    assert [refusal.code for refusal in program.refusals] == ["token_invalid"], program.refusals


# The other side waits for what the first two of these ask it to do, in this order.
CHECKS = [
    while_nobody_is_there_a_device_heeds_the_hint,
    a_goodbye_s_hint_is_heeded,
    the_rules_decide_who_comes_back_and_when,
    replaced_is_the_last_word_but_for_five_minutes_after_a_loss,
    who_was_closed_by_an_operator_stays_away,
    a_device_that_was_replaced_soon_after_a_loss_comes_back_and_later_does_not,
]
# Of who has a key.
KEY_CHECKS = [
    a_denied_device_is_refused_and_does_not_hurry,
    who_tries_too_often_is_let_in_after_the_hint,
]
OF_CHANNEL = {
    "wss": [
        a_lost_device_comes_back_with_a_backoff_that_grows_and_differs,
        a_token_that_does_not_hold_keeps_a_device_away,
    ],
    "ws": [a_lost_device_comes_back_with_a_backoff_that_grows_and_differs, *KEY_CHECKS],
    # What a loss is there checks_udp.py says.
    "udp": KEY_CHECKS,
}
