"""What the protocol promises on `ws` alone: only records of this connection count, and each fault has its close code."""

import asyncio
import json
import pathlib

from websockets.exceptions import ConnectionClosed

import secure
from channels import Ws, soon
from checks import Device, expect_no_word, handshake, hello, login
from events import encode_text
from secure import BINARY, CONTROL, MORE, PING, TEXT

VECTORS = pathlib.Path(__file__).parents[2] / "proto/vectors/ws.json"


async def records_agree_with_the_vectors_across_rekeyings(_):
    kinds = {"text": TEXT, "binary": BINARY, "control": CONTROL}
    for sequence in json.loads(VECTORS.read_text())["record_sequences"]:
        inputs = bytes.fromhex(sequence["key"]), sequence["first_counter"]
        sending, receiving = (secure.Direction.at(*inputs) for _ in range(2))
        for vector in sequence["records"]:
            kind, data, record = kinds[vector["kind"]], *(bytes.fromhex(vector[f]) for f in ("data", "record"))
            assert sending.cipher.n == vector["counter"], vector
            assert sending.seal(kind, data) == record, vector
            assert receiving.open(record) == (kind, data), vector


async def challenges_agree_with_the_vectors(_):
    vectors = json.loads(VECTORS.read_text())
    for vector in vectors["accepted_challenges"]:
        assert secure.read_challenge(vector["challenge"]).hex() == vector["message_2"], vector["why"]
    for vector in vectors["rejected_challenges"]:
        try:
            secure.read_challenge(vector["challenge"])
        except secure.Rejected:
            continue
        raise AssertionError(f"taken: {vector}")


async def a_device_without_a_clock_is_let_in(gateway):
    async with login(gateway, time_ms=lambda: None) as device:
        await device.echo()


async def a_stranger_s_challenge_is_refused(gateway):
    """A server that does not hold the key cannot make one that the device takes."""
    message_2 = secure.to_text(bytes([9]) + bytes(47))
    for challenge in (f'@challenge {{"noise":"{message_2}"}}', "@welcome {}", b"@challenge"):
        try:
            handshake(gateway).take_challenge(challenge)
            raise AssertionError(f"taken: {challenge}")
        except secure.Rejected:
            pass


async def a_tampered_record_is_closed_with_4007(gateway):
    async with login(gateway) as device:
        record = bytearray(device.channel.sending.seal(TEXT, b"@ping"))
        record[-1] ^= 1
        await device.channel.socket.send(bytes(record))
        await device.expect_close(4007)


async def a_replayed_record_is_closed_with_4007(gateway):
    async with login(gateway) as device:
        record = device.channel.sending.seal(TEXT, b"@ping")
        await device.channel.socket.send(record)
        assert await device.channel.receive() == "@pong"
        await device.channel.socket.send(record)
        await device.expect_close(4007)


async def a_lost_record_is_closed_with_4007(gateway):
    async with login(gateway) as device:
        device.channel.sending.seal(TEXT, b"@ping")
        await device.channel.send("@ping")
        await device.expect_close(4007)


async def a_message_in_the_clear_is_closed_with_4008(gateway):
    async with login(gateway) as device:
        await device.channel.socket.send("@ping")
        await device.expect_close(4008)


async def another_first_message_is_closed_with_4009(gateway):
    for kind, data in (
        (TEXT, b"@ping"),
        (TEXT, encode_text("Demo", "Echo", "first", {}).encode()),
        (BINARY, b"@hello {}"),
    ):
        async with Ws.open(gateway) as channel:
            await channel.send_record(kind, data)
            await Device(channel, None).expect_close(4009)


async def without_hello_a_connection_is_closed_with_4009(gateway):
    """A ping before it is answered, and is no message."""
    async with Ws.open(gateway) as channel:
        await channel.ping()
        await Device(channel, None).expect_close(4009)


async def a_first_message_that_is_no_record_is_closed_as_any_later_one(gateway):
    for message, code in (("@hello {}", 4008), (bytes(30), 4007)):
        async with Ws.open(gateway) as channel:
            await channel.socket.send(message)
            await Device(channel, None).expect_close(code)


async def a_replayed_credential_leaves_the_session_alone(gateway):
    """It gets a challenge, and can say nothing after it."""
    attempt = handshake(gateway)
    async with Ws.open_with(gateway, attempt) as channel:
        device = await hello(channel)
        stranger = Ws.open_with(gateway, Replayed(attempt.credential))
        async with stranger as replayed:
            await replayed.send("@hello {}")
            try:
                raise AssertionError(f"answered: {await replayed.receive()}")
            except (secure.Rejected, ConnectionClosed):
                pass
        await device.echo()


class Replayed:
    """A credential without its ephemeral key."""

    def __init__(self, credential):
        self.credential = credential

    def take_challenge(self, message):
        assert message.startswith("@challenge "), message
        return tuple(secure.Direction.at(bytes(32), 0) for _ in range(2))


async def records_against_the_form_are_closed_with_1002(gateway):
    full = bytes(secure.CHUNK_BYTES)
    for records in (
        [(0x03, b"")],
        [(CONTROL | MORE, full)],
        [(TEXT | MORE, b"not full")],
        [(TEXT | MORE, full), (BINARY, b"other kind")],
        [(TEXT | MORE, full), (TEXT, b"")],
        [(CONTROL, b"")],
        [(CONTROL, PING + b"more")],
        [(CONTROL, secure.encode_close(1000, "x" * 124))],
    ):
        async with login(gateway) as device:
            for kind, data in records:
                await device.channel.send_record(kind, data)
            try:
                await device.expect_close(1002)
            except AssertionError as error:
                raise AssertionError([(kind, data[:20]) for kind, data in records]) from error


async def text_that_is_not_utf_8_is_closed_with_1007(gateway):
    async with login(gateway) as device:
        await device.channel.send_record(TEXT, b"\xff")
        await device.expect_close(1007)


async def records_may_be_fragmented_and_pings_may_stand_between_chunks(gateway):
    async with login(gateway) as device:
        message = encode_text("Demo", "Echo", "long", "€" * secure.CHUNK_BYTES)
        for kind, data in secure.cut(message):
            record = device.channel.sending.seal(kind, data)
            await device.channel.socket.send([record[:1], record[1:1000], b"", record[1000:]])
            await device.channel.ping()
        header, payload = await device.event()
        assert (header["reply_to"], payload) == ("long", "€" * secure.CHUNK_BYTES), header


async def pings_in_the_clear_are_no_life(gateway):
    async with login(gateway) as device:
        device.channel.answers_pings = False
        pinging = asyncio.create_task(ping_in_the_clear(device.channel.socket))
        await device.expect_close(4003)
        pinging.cancel()


async def ping_in_the_clear(socket):
    try:
        while True:
            await soon(await socket.ping())
            await asyncio.sleep(0.1)
    except ConnectionClosed:
        pass


async def a_close_in_the_clear_gets_no_word_that_may_be_believed(gateway):
    async with login(gateway) as device:
        await soon(device.channel.socket.close(4000))
        assert device.channel.socket.close_code != 4000, "repeated"
        await expect_no_word(device)


async def nothing_is_done_after_a_close_record(gateway):
    async with login(gateway) as device:
        await device.channel.send_record(CONTROL, secure.encode_close(1000))
        await device.channel.send(encode_text("Demo", "Echo", "late", {}))
        await soon(device.channel.socket.wait_closed())
        assert device.channel.inbox.qsize() == 1, "something was said after the close"


CHECKS = [
    records_agree_with_the_vectors_across_rekeyings,
    challenges_agree_with_the_vectors,
    a_device_without_a_clock_is_let_in,
    a_stranger_s_challenge_is_refused,
    a_tampered_record_is_closed_with_4007,
    a_replayed_record_is_closed_with_4007,
    a_lost_record_is_closed_with_4007,
    a_message_in_the_clear_is_closed_with_4008,
    another_first_message_is_closed_with_4009,
    without_hello_a_connection_is_closed_with_4009,
    a_first_message_that_is_no_record_is_closed_as_any_later_one,
    a_replayed_credential_leaves_the_session_alone,
    records_against_the_form_are_closed_with_1002,
    text_that_is_not_utf_8_is_closed_with_1007,
    records_may_be_fragmented_and_pings_may_stand_between_chunks,
    pings_in_the_clear_are_no_life,
    a_close_in_the_clear_gets_no_word_that_may_be_believed,
    nothing_is_done_after_a_close_record,
]
