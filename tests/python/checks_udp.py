"""What the protocol promises on `udp` alone (PROTOCOL.md section 14), against a gateway."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import secure
import udp
from checks import HOUR_MS, Device, hello, login
from events import decode_binary, encode_binary, encode_text
from outcome import Lost
from udp import Refused, Socket, Udp
from udp_ends import Ends
from udp_weather import Weather
from udp_wire import CHALLENGE, DATA, HELLO, REFUSED, RETRY, VERSION, decode_answer, encode_packet

LONG_BYTES = 300_000


async def two_ends_of_ours_agree_in_any_weather(_):
    """Also while keys change and the lower half of packet numbers runs over."""
    for seed in range(12):
        first = (0, (1 << 20) - 20, (1 << 32) - 10)[seed % 3]
        weather = Weather(seed, lost=seed % 4 * 0.05, doubled=0.1, mutated=0.1, overtaken=0.1)
        ends = Ends(weather, window=(4, 4096) if seed % 2 else (64, 65_536), first=first)
        sent = [weather.random.randbytes(n) for n in (0, 1, 60_000, 1000, 100)] * 3
        for message in sent:
            ends.device.send(message)
            ends.server.send(message)
        both = ends.device, ends.server
        ends.run_until(lambda: all(len(end.messages) == len(sent) or end.end for end in both))
        assert all(end.messages == sent for end in both), (seed, [end.end for end in both])
        assert ends.device.reset_token == ends.server.token, seed


async def our_own_end_refuses_what_breaks_the_protocol(_):
    for name, packets in packets_against_the_form(0):
        ends = Ends(Weather(0))
        for packet in packets:
            ends.device.handle_datagram(ends.server.seal_raw(packet), ends.now)
        ends.run_until(lambda: ends.server.end)
        assert ends.server.end.args[0].startswith("1002 "), (name, ends.server.end)


async def what_has_no_room_is_not_acknowledged(_):
    """And may come again when there is room."""
    ends = Ends(Weather(0), window=(4, 4096))
    pieces = ((4000, 500), (0, 1100), (1100, 1100))
    beyond, *before = (piece(message=0, length=9000, offset=at, data=bytes(size)) for at, size in pieces)
    ends.device.handle_datagram(ends.server.seal_raw(beyond), ends.now)
    assert ends.device.opening.expected == 0 and not ends.device.inbox.parts
    for packet in before:
        ends.device.handle_datagram(ends.server.seal_raw(packet), ends.now)
    assert ends.device.poll_datagram(ends.now), "no credit is given"
    ends.device.handle_datagram(ends.server.seal_raw(beyond), ends.now)
    ack = ends.device.acknowledgement(ends.now)
    assert (ack["largest"], ack["ranges"], ends.device.inbox.ahead_bytes) == (3, [2], 4500), ack


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


async def a_moved_device_s_reply_comes_to_where_it_is(gateway):
    async with login(gateway) as device:
        channel = device.channel
        for n in range(3):
            await device.request("Demo", "Echo", f"m-{n}", {"n": n, "delay_ms": 700, "padding": "x" * 5000})
            await channel.ping()
            challenges = channel.connection.challenges
            await channel.move()
            await channel.ping()
            header, payload = await device.event()
            assert (header["reply_to"], payload["n"]) == (f"m-{n}", n), header
            assert channel.connection.challenges > challenges, "not validated"


async def a_device_moves_in_the_middle_of_a_long_message(gateway):
    async with login(gateway) as device:
        channel = device.channel
        await device.request("Demo", "Echo", "long", "x" * LONG_BYTES)
        await channel.until(lambda: channel.connection.outbox.queue[0].sent > LONG_BYTES // 4)
        await channel.move()
        header, payload = await device.event()
        assert (header["reply_to"], payload) == ("long", "x" * LONG_BYTES), header


async def no_more_goes_to_a_new_address_than_came_from_there(gateway):
    """Somebody sends the device's packets on from where he is, ahead of the device's own."""
    async with login(gateway) as device, Raw.open(gateway) as thief:
        await device.request("Demo", "Echo", "long", {"delay_ms": 300, "padding": "x" * LONG_BYTES})
        sent = 0
        for _ in range(5):
            stolen = device.channel.connection.seal_raw(encode_packet({"ping": True, "padding": 15}))
            thief.socket.send([stolen])
            sent += len(stolen)
            await asyncio.sleep(0.05)
        header, payload = await device.event()
        assert (header["reply_to"], len(payload["padding"])) == ("long", LONG_BYTES), header
        came = list(drained(thief.socket.datagrams))
        assert 0 < sum(came) <= sent, (came, sent)
        await device.echo()


def drained(queue):
    while not queue.empty():
        yield len(queue.get_nowait())


async def doubled_and_mutated_and_overtaken_datagrams_change_nothing(gateway):
    weather = Weather(7, doubled=0.3, mutated=0.3, overtaken=0.1)
    await converse(gateway, weather, ("doubled", "mutated", "overtaken"))


async def lost_datagrams_are_made_good(gateway):
    await converse(gateway, Weather(8, lost=0.05), ("lost",))


async def converse(gateway, weather, happened):
    async with login(gateway, weather=weather) as device:
        for n in range(30):
            await device.request("Demo", "Echo", f"c-{n}", {"n": n})
        for n in range(30):
            header, payload = await device.event()
            assert (header["reply_to"], header["seq"], payload["n"]) == (f"c-{n}", n + 1, n), header
        payload = bytes(i % 251 for i in range(LONG_BYTES))
        await device.channel.send(encode_binary({1: "Demo", 2: "Echo", 3: "long"}, payload))
        fields, echoed = decode_binary(await device.channel.receive())
        assert (fields[5], fields[6], echoed) == ("long", 31, payload), fields
        assert all(weather.counts[what] for what in happened), weather.counts


async def no_more_is_sent_than_there_is_credit_for(gateway):
    async with login(gateway, window=SimpleNamespace(messages=4, bytes=4096)) as device:
        channel, inbox = device.channel, device.channel.connection.inbox
        inbox.grants = False
        granted = inbox.granted_bytes
        for n in range(3):
            await device.request("Demo", "Echo", f"p-{n}", "x" * 20_000)
        await channel.until(lambda: inbox.handed_bytes + inbox.ahead_bytes == granted)
        # Silence is the subject.
        await asyncio.sleep(0.5)
        assert inbox.handed_bytes + inbox.ahead_bytes == granted and channel.inbox.empty()
        await channel.ping()
        inbox.grants = True
        channel.connection.wanted.add("credit")
        channel.turn()
        for n in range(3):
            header, payload = await device.event()
            assert (header["reply_to"], payload) == (f"p-{n}", "x" * 20_000), header


async def small_datagrams_do(gateway):
    attempt = handshake(gateway, max_datagram=512)
    seen = []

    class Watching(udp.Clear):
        def into(self, datagram):
            seen.append(len(datagram))
            return [datagram]

    async with Udp.open_with(gateway, attempt, Watching()) as channel:
        channel.connection.max_datagram = channel.connection.recovery.max_datagram = 512
        device = await hello(channel)
        await device.request("Demo", "Echo", "s", "x" * 50_000)
        _, payload = await device.event()
        assert payload == "x" * 50_000 and 400 < max(seen) <= 512, max(seen)


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


def piece(**fields):
    return encode_packet({"pieces": [fields]})


def packets_against_the_form(n):
    """`n` is the number of the device's next message."""
    text = {"message": n, "data": b"x"}
    yield "a field that breaks off", [b"\x12\x05\x00"]
    yield "a wire type", [b"\x32\x01\x01"]
    yield "two credits", [encode_packet({"credit": {"messages": 8}}) * 2]
    yield "65 pieces", [encode_packet({"pieces": [{"data": b"@hello {}"}] * 65})]
    yield "a kind", [piece(**text | {"kind": 2})]
    yield "data beyond the length", [piece(**text | {"length": 5, "offset": 5})]
    yield "a part without data", [piece(message=n, length=5)]
    yield "another length", [piece(**text | {"length": 10}), piece(**text | {"length": 11, "offset": 5})]
    yield "another kind", [piece(**text | {"length": 10}), piece(**text | {"length": 10, "offset": 5, "kind": 1})]
    yield "a message far beyond the credit", [piece(**text | {"message": 1 << 40})]
    yield "an acknowledgement of the future", [encode_packet({"ack": {"largest": 1 << 20}})]
    yield "an acknowledgement below 0", [encode_packet({"ack": {"largest": 0, "ranges": [1]}})]
    yield "an even number of ranges", [encode_packet({"ack": {"largest": 0, "ranges": [0, 0]}})]
    yield "33 runs", [encode_packet({"ack": {"largest": 0, "ranges": [0] * 65}})]
    yield "credit for too much", [encode_packet({"credit": {"messages": 1 << 40, "bytes": 0}})]
    yield "a token of 15 bytes", [encode_packet({"reset_token": bytes(15)})]
    yield "a close code of 17 bits", [encode_packet({"close": {"code": 1 << 16}})]
    yield "a reason that is not UTF-8", [b"\x3a\x03\x12\x01\xff"]


async def packets_against_the_form_are_closed_with_1002(gateway):
    for name, packets in packets_against_the_form(1):
        async with login(gateway) as device:
            for packet in packets:
                device.channel.send_packet(packet + b"\x4a\x20" + bytes(32))
            try:
                await device.expect_close(1002)
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(name) from error


async def unknown_fields_are_skipped(gateway):
    async with login(gateway) as device:
        device.channel.send_packet(b"\x98\x06\x05\xa2\x06\x03abc\xad\x06abcd\xb1\x06abcdefgh" + bytes([0x4A, 40]) + bytes(40))
        await device.echo()


async def a_piece_of_a_message_over_the_limit_is_closed_with_1009(gateway):
    async with login(gateway) as device:
        device.channel.send_packet(piece(message=1, length=device.welcome["max_message"] + 1, data=bytes(100)))
        await device.expect_close(1009)


async def text_that_is_not_utf_8_is_closed_with_1007(gateway):
    async with login(gateway) as device:
        device.channel.connection.outbox.push_raw(0, b"\xff")
        device.channel.turn()
        await device.expect_close(1007)


async def pieces_may_overlap_and_come_in_any_order(gateway):
    message = encode_text("Demo", "Echo", "cut", "€" * 500).encode()
    async with login(gateway) as device:
        for start, end in ((900, len(message)), (1, 1000), (500, 700), (0, 20), (0, 20)):
            cut = piece(message=1, length=len(message), offset=start, data=message[start:end])
            device.channel.send_packet(cut + b"\x4a\x20" + bytes(32))
        header, payload = await device.event()
        assert (header["reply_to"], payload) == ("cut", "€" * 500), header


async def replays_and_forgeries_are_no_life(gateway):
    async with login(gateway) as device:
        connection = device.channel.connection
        connection.answers = False
        number, recorded = connection.sealing.seal(encode_packet({"ping": True, "padding": 40}))
        connection.recovery.next = number + 1
        changed = recorded[:12] + bytes([recorded[12] + 1]) + recorded[13:]

        async def pester():
            while True:
                device.channel.send_datagrams(recorded, changed)
                await asyncio.sleep(0.1)

        pestering = asyncio.create_task(pester())
        try:
            await device.expect_close(4003)
        finally:
            pestering.cancel()


async def a_device_s_own_close_hands_over_what_was_sent_before(gateway):
    async with login(gateway) as device:
        for n in range(5):
            await device.request("Demo", "Echo", f"last-{n}", "x" * 3000)
        await device.channel.close(1000)
        assert not device.channel.connection.outbox.queue
        try:
            # Answers that were quicker than the close.
            while True:
                await device.event()
        except Lost:
            pass


async def a_reset_has_the_token_that_was_told(gateway):
    """Nobody knows the connection any more once it is closed."""
    async with login(gateway) as device:
        await device.echo()
        channel = device.channel
        await channel.close(1000)
        for _ in range(50):
            channel.send_packet(encode_packet({"ping": True, "padding": 40}))
            await asyncio.sleep(0.1)
            if channel.resets:
                break
        assert set(channel.resets) == {channel.connection.reset_token}, "no reset, or another token"


async def a_forged_reset_changes_nothing(gateway):
    async with login(gateway) as device:
        connection_id = device.channel.connection.opening.connection_id
        for token in (bytes(16), device.channel.connection.reset_token[:15] + b"\0"):
            device.channel.on_datagram(b"\x05" + connection_id + token)
        device.channel.on_datagram(b"\x05" + bytes(8) + device.channel.connection.reset_token)
        assert len(device.channel.resets) == 2
        await device.echo()


async def a_device_learns_of_a_restart_by_a_reset(gateway):
    """The other side kills the frontend when this request came, and starts it again."""
    async with login(gateway) as device:
        await device.echo()
        await device.request("Restart", "Echo", "restart", {})
        connection, until = device.channel.connection, time.monotonic() + 15
        while not connection.end and time.monotonic() < until:
            connection.want_ping()
            device.channel.turn()
            await asyncio.sleep(0.2)
        assert isinstance(connection.end, Lost) and device.channel.resets, repr(connection.end)
    until = time.monotonic() + 20
    while True:
        try:
            async with login(gateway) as device:
                return await device.echo()
        except (Refused, Lost):
            assert time.monotonic() < until, "not let in again"
            await asyncio.sleep(0.5)


CHECKS = [
    two_ends_of_ours_agree_in_any_weather,
    our_own_end_refuses_what_breaks_the_protocol,
    what_has_no_room_is_not_acknowledged,
    a_device_without_a_clock_is_let_in,
    bad_credentials_are_refused,
    parameters_are_what_the_device_s_key_vouches_for,
    a_hello_again_gets_the_same_challenge_again,
    a_replayed_hello_leaves_the_session_alone,
    what_has_no_good_form_gets_no_answer,
    what_strangers_say_before_the_challenge_does_no_lasting_harm,
    a_moved_device_s_reply_comes_to_where_it_is,
    a_device_moves_in_the_middle_of_a_long_message,
    no_more_goes_to_a_new_address_than_came_from_there,
    doubled_and_mutated_and_overtaken_datagrams_change_nothing,
    lost_datagrams_are_made_good,
    no_more_is_sent_than_there_is_credit_for,
    small_datagrams_do,
    another_first_message_is_closed_with_4009,
    without_hello_a_connection_is_closed_with_4009,
    without_a_packet_a_connection_is_forgotten_in_silence,
    packets_against_the_form_are_closed_with_1002,
    unknown_fields_are_skipped,
    a_piece_of_a_message_over_the_limit_is_closed_with_1009,
    text_that_is_not_utf_8_is_closed_with_1007,
    pieces_may_overlap_and_come_in_any_order,
    replays_and_forgeries_are_no_life,
    a_device_s_own_close_hands_over_what_was_sent_before,
    a_reset_has_the_token_that_was_told,
    a_forged_reset_changes_nothing,
    a_device_learns_of_a_restart_by_a_reset,
]
