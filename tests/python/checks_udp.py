"""What the protocol promises of a connection on `udp` (PROTOCOL.md sections 14.6 to 14.10), against a gateway."""

import asyncio
import time
from types import SimpleNamespace

import udp
from checks import hello, login
from checks_udp_opening import Raw, handshake
from events import decode_binary, encode_binary
from outcome import Lost
from udp import Refused, Udp
from udp_packet import encode_packet
from udp_weather import Weather

LONG_BYTES = 300_000


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
    a_moved_device_s_reply_comes_to_where_it_is,
    a_device_moves_in_the_middle_of_a_long_message,
    no_more_goes_to_a_new_address_than_came_from_there,
    doubled_and_mutated_and_overtaken_datagrams_change_nothing,
    lost_datagrams_are_made_good,
    no_more_is_sent_than_there_is_credit_for,
    small_datagrams_do,
    replays_and_forgeries_are_no_life,
    a_device_s_own_close_hands_over_what_was_sent_before,
    a_reset_has_the_token_that_was_told,
    a_forged_reset_changes_nothing,
    a_device_learns_of_a_restart_by_a_reset,
]
