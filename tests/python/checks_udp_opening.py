"""What the protocol promises on `udp` while a connection is opened (PROTOCOL.md section 14.3), against a gateway."""

import asyncio
import contextlib

import secure
import udp
from checks import HOUR_MS, Device, hello, login
from events import encode_text
from udp import Refused, Socket, Udp
from udp_wire import CHALLENGE, DATA, HELLO, REFUSED, RETRY, VERSION, decode_answer


async def a_device_without_a_clock_is_let_in(gateway):
    async with login(gateway, time_ms=lambda: None) as device:
        await device.echo()


def handshake(gateway, **changes):
    inputs = {"identity": gateway.identity, "key": gateway.key, "time_ms": secure.now_ms()}
    return udp.Handshake(**inputs | changes)


async def bad_credentials_are_refused(gateway):
    others = gateway.identity | {"key_id": "nobody-has-this"}
    mangled = handshake(gateway)
    mangled.credential = b"\x01AAAA"
    for attempt, *expected in (
        (mangled, 400, "bad_credential"),
        (handshake(gateway, key=bytes(32)), 401, "handshake_failed"),
        (handshake(gateway, channel="ws"), 401, "handshake_failed"),
        (handshake(gateway, identity=gateway.identity | {"key_version": 2}), 401, "handshake_failed"),
        (handshake(gateway, identity=others), 401, "key_unknown"),
        (handshake(gateway, time_ms=secure.now_ms() - HOUR_MS), 401, "clock_skew"),
    ):
        seen = await refusal(gateway, attempt)
        assert (seen.status, seen.code, seen.retryable) == (*expected, False), (vars(seen), expected)


async def refusal(gateway, attempt):
    try:
        async with Udp.open_with(gateway, attempt):
            raise AssertionError("admitted")
    except Refused as refused:
        return refused


async def parameters_are_what_the_device_s_key_vouches_for(gateway):
    attempt = handshake(gateway)
    attempt.parameters = attempt.parameters[:-1] + bytes([attempt.parameters[-1] ^ 1])
    seen = await refusal(gateway, attempt)
    assert (seen.status, seen.code) == (401, "handshake_failed"), vars(seen)


class Raw:
    """A socket without a connection."""

    def __init__(self, opened):
        self.socket = opened

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, gateway):
        opened = await Socket.open(gateway)
        try:
            yield cls(opened)
        finally:
            opened.transport.close()

    async def ask(self, datagram, timeout=0.5):
        """The answer, or None."""
        self.socket.send([datagram])
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.socket.datagrams.get(), timeout)

    async def ask_patiently(self, datagram):
        for _ in range(20):
            if answer := await self.ask(datagram):
                return answer
        raise AssertionError("no answer")

    async def challenge(self, attempt):
        """(the HELLO that was answered with a CHALLENGE, the CHALLENGE)."""
        said = attempt.hello()
        answer = await self.ask_patiently(said)
        if answer[0] == RETRY:
            said = attempt.hello(decode_answer(answer).cookie)
            answer = await self.ask_patiently(said)
        assert answer[0] == CHALLENGE, answer
        return said, answer


async def a_hello_again_gets_the_same_challenge_again(gateway):
    attempt = handshake(gateway)
    async with Raw.open(gateway) as raw, Raw.open(gateway) as elsewhere:
        said, challenge = await raw.challenge(attempt)
        assert len(challenge) <= len(said)
        for _ in range(3):
            assert await raw.ask_patiently(said) == challenge
        expect_nothing_of(challenge[10:18], await elsewhere.ask(said))


def expect_nothing_of(connection_id, answer):
    """What is sent again from elsewhere gets no answer or a RETRY. A part of the server that does not know the attempt takes it for a
    new one, for which there is another connection."""
    if answer and answer[0] != RETRY:
        assert answer[0] == CHALLENGE and decode_answer(answer).connection_id != connection_id, answer


async def a_replayed_hello_leaves_the_session_alone(gateway):
    attempt = handshake(gateway)
    async with Udp.open_with(gateway, attempt) as channel, Raw.open(gateway) as stranger:
        device = await hello(channel)
        connection_id, said = channel.connection.opening.connection_id, attempt.hello(channel.attempt.cookie)
        for _ in range(3):
            answer = await stranger.ask(said)
            expect_nothing_of(connection_id, answer)
        if answer and answer[0] == RETRY:
            # The cookie is the stranger's now, the attempt is not.
            answer = await stranger.ask(attempt.hello(decode_answer(answer).cookie))
            expect_nothing_of(connection_id, answer)
        await device.echo()


async def what_has_no_good_form_gets_no_answer(gateway):
    good = handshake(gateway).hello()
    async with Raw.open(gateway) as raw:
        for datagram in (
            b"",
            b"\0" * 300,
            good[:200],
            good[:1] + b"\x02" + good[2:],
            good[:-1] + b"\x01",
            good.ljust(1473, b"\0"),
            bytes([RETRY, VERSION]) + bytes(300),
            bytes([DATA]) + bytes(27),
        ):
            assert await raw.ask(datagram, 0.2) is None, datagram


async def data_of_no_connection_gets_a_reset_or_nothing(gateway):
    connection_id = b"\0\0\0\1strg"
    async with Raw.open(gateway) as raw:
        for length in (29, 1472):
            answer = await raw.ask((bytes([DATA]) + connection_id).ljust(length, b"x"))
            if answer:
                reset = decode_answer(answer)
                assert (reset.type, reset.connection_id, len(answer)) == ("reset", connection_id, 25), answer


class Forging:
    """Weather in which `forge` puts datagrams before the first one of a type that comes in, while there is no connection."""

    def __init__(self, kind, forge):
        self.kind, self.forge, self.forged = kind, forge, 0

    def out(self, datagram):
        if datagram[0] == HELLO:
            self.attempt = datagram[2:10]
        return [datagram]

    def into(self, datagram):
        if datagram[0] != self.kind or self.forged:
            return [datagram]
        self.forged += 1
        return [*self.forge(self, datagram), datagram]


async def what_strangers_say_before_the_challenge_does_no_lasting_harm(gateway):
    def refuse(weather, _):
        return [bytes([REFUSED, VERSION]) + weather.attempt + b"\x01\x91" + bytes(4) + b"\0\x06denied"]

    def retry(weather, _):
        return [bytes([RETRY, VERSION]) + weather.attempt + b"\x01" + bytes([n]) for n in range(5)]

    def challenge(weather, true):
        changed = true[:-1] + bytes([true[-1] ^ 1])
        other = true[:2] + bytes(8) + true[10:]
        return [changed, other, changed[:18] + bytes(48), true[:-1], true + b"\0"]

    for forge in (refuse, retry, challenge):
        weather = Forging(CHALLENGE, forge)
        async with login(gateway, weather=weather) as device:
            assert weather.forged
            await device.echo()


async def another_first_message_is_closed_with_4009(gateway):
    for message in ("@ping", encode_text("Demo", "Echo", "first", {}), b"@hello {}"):
        async with Udp.open(gateway) as channel:
            await channel.send(message)
            await Device(channel, None).expect_close(4009)


async def without_hello_a_connection_is_closed_with_4009(gateway):
    """A packet without a piece before it is answered, and is no message."""
    async with Udp.open(gateway) as channel:
        await channel.ping()
        await Device(channel, None).expect_close(4009)


async def without_a_packet_a_connection_is_forgotten_in_silence(gateway):
    async with Udp.open(gateway) as channel:
        # The silence is the subject.
        await asyncio.sleep(gateway.challenge_ms / 1000 * 1.5)
        assert channel.inbox.empty() and channel.connection.opening.expected == 0
        await channel.send("@hello {}")
        await asyncio.sleep(1)
        assert channel.inbox.empty(), "answered"


CHECKS = [
    a_device_without_a_clock_is_let_in,
    bad_credentials_are_refused,
    parameters_are_what_the_device_s_key_vouches_for,
    a_hello_again_gets_the_same_challenge_again,
    a_replayed_hello_leaves_the_session_alone,
    what_has_no_good_form_gets_no_answer,
    data_of_no_connection_gets_a_reset_or_nothing,
    what_strangers_say_before_the_challenge_does_no_lasting_harm,
    another_first_message_is_closed_with_4009,
    without_hello_a_connection_is_closed_with_4009,
    without_a_packet_a_connection_is_forgotten_in_silence,
]
