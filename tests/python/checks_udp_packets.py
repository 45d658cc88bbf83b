"""What the protocol says of packets, pieces and messages on `udp` (PROTOCOL.md sections 14.4 to 14.8): of ours among themselves, and
against a gateway."""

from checks import login
from events import encode_text
from udp_ends import Ends
from udp_packet import encode_packet
from udp_weather import Weather
from udp_wire import REKEY_PACKETS


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


async def keys_change_on_the_way_to_the_server(gateway):
    """To the server, numbers that are left out are packets that were lost."""
    async with login(gateway, weather=Weather(9, lost=0.05, overtaken=0.1)) as device:
        connection = device.channel.connection
        for generation in (1, 2):
            connection.sealing.number = connection.recovery.next = generation * REKEY_PACKETS - 5
            for n in range(20):
                await device.echo(f"{generation}-{n}")
            assert connection.sealing.number > generation * REKEY_PACKETS


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


CHECKS = [
    two_ends_of_ours_agree_in_any_weather,
    our_own_end_refuses_what_breaks_the_protocol,
    what_has_no_room_is_not_acknowledged,
    packets_against_the_form_are_closed_with_1002,
    keys_change_on_the_way_to_the_server,
    unknown_fields_are_skipped,
    a_piece_of_a_message_over_the_limit_is_closed_with_1009,
    text_that_is_not_utf_8_is_closed_with_1007,
    pieces_may_overlap_and_come_in_any_order,
]
