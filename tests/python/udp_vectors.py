"""That we and proto/vectors/udp.json agree. Each check is a coroutine as in checks.py, and needs no gateway."""

import json
import pathlib
from types import SimpleNamespace

import secure
import udp
import udp_packet
import udp_wire
from secure import Rejected
from udp_wire import Broken, Opening, Sealing

VECTORS = json.loads((pathlib.Path(__file__).parents[2] / "proto/vectors/udp.json").read_text())


def rejected(call, *arguments, by=Rejected):
    try:
        result = call(*arguments)
    except by:
        return
    raise AssertionError(f"not rejected: {result}")


def handshake(vector):
    window = SimpleNamespace(bytes=vector["receive_bytes"], messages=vector["receive_messages"])
    return udp.Handshake(
        vector,
        secure.from_text(vector["device_key"]),
        vector["now_ms"],
        window,
        ephemeral=bytes.fromhex(vector["device_ephemeral_private"]),
        attempt=vector["attempt"],
        max_datagram=vector["max_datagram"],
    )


async def handshakes_agree_with_the_vectors(_):
    for vector in VECTORS["handshakes"]:
        attempt = handshake(vector)
        assert attempt.parameters.hex() == vector["parameters"], vector
        assert attempt.credential.hex() == vector["identity"] + vector["message_1"], vector
        assert attempt.hello(bytes.fromhex(vector["cookie"])).hex() == vector["hello"], vector
        # One that does not authenticate comes first, and does no harm.
        rejected(attempt.take_challenge, bytes([9]) + bytes(47))
        challenge = udp_wire.decode_answer(bytes.fromhex(vector["challenge"]))
        assert (challenge.attempt, challenge.connection_id.hex()) == (vector["attempt"], vector["connection_id"])
        keys = attempt.take_challenge(challenge.message_2)
        assert [key.hex() for key in keys] == [vector["to_server"], vector["to_device"]], vector
    for vector in VECTORS["unverified_challenges"]:
        challenge = udp_wire.decode_answer(bytes.fromhex(vector["challenge"]))
        rejected(handshake(vector).take_challenge, challenge.message_2)


async def answers_agree_with_the_vectors(_):
    for vector in VECTORS["answers"]:
        answer = vars(udp_wire.decode_answer(bytes.fromhex(vector["datagram"])))
        if "cookie" in answer:
            answer["cookie"] = answer["cookie"].hex()
        assert answer | {"datagram": vector["datagram"]} == vector, answer
    for vector in VECTORS["rejected_datagrams"]:
        datagram = bytes.fromhex(vector["datagram"])
        # A device takes no HELLO either, and DATA only in its connection.
        rejected(udp_wire.decode_answer, datagram)
        assert Opening(bytes(32), datagram[1:9]).open(datagram) is None, vector["why"]
    for vector in VECTORS["reset_tokens"]:
        reset = udp_wire.decode_answer(bytes.fromhex(vector["datagram"]))
        assert (reset.connection_id.hex(), reset.token.hex()) == (vector["connection_id"], vector["token"])


async def packets_agree_with_the_vectors(_):
    for vector in VECTORS["packets"]:
        packet = udp_packet.decode_packet(bytes.fromhex(vector["packet"]))
        assert normal(packet) == normal(from_hex(vector["fields"])), (vector["about"], packet)
        encoded = udp_packet.encode_packet(from_hex(vector["fields"]))
        if vector["about"] not in ("unknown fields", "another order of fields"):
            assert encoded.hex() == vector["packet"], vector["about"]
    for vector in VECTORS["rejected_packets"]:
        try:
            rejected(udp_packet.decode_packet, bytes.fromhex(vector["packet"]), by=Broken)
        except AssertionError as error:
            raise AssertionError(vector["why"]) from error


def from_hex(fields):
    fields = dict(fields)
    if "reset_token" in fields:
        fields["reset_token"] = bytes.fromhex(fields["reset_token"])
    fields["pieces"] = [piece | {"data": bytes.fromhex(piece.get("data", ""))} for piece in fields.get("pieces", [])]
    return fields


def normal(value):
    """Without what is 0 or empty, but for messages, which say something by being there."""
    if isinstance(value, dict):
        values = ((name, normal(v)) for name, v in value.items())
        return {name: v for name, v in values if v or isinstance(v, dict) or name == "padding"}
    return [normal(v) for v in value] if isinstance(value, list) else value


async def acknowledgements_agree_with_the_vectors(_):
    for vector in VECTORS["acknowledgements"]:
        ack = {"largest": vector["largest"], "ranges": vector["ranges"]}
        runs = list(udp_packet.runs(ack))
        accepted = sorted(n for first, last in runs for n in range(first, last + 1))
        assert accepted == sorted(vector["accepted"]), vector
        assert udp_packet.ack_of(runs) == ack, vector


async def sealed_packets_agree_with_the_vectors(_):
    for vector in VECTORS["data"]:
        number, first_key = vector["number"], bytes.fromhex(vector["first_key"])
        key = first_key
        for _ in range(number // udp_wire.REKEY_PACKETS):
            key = udp_wire.rekey(key)
        assert key.hex() == vector["key"], vector
        connection_id = bytes.fromhex(vector["connection_id"])
        packet, datagram = bytes.fromhex(vector["packet"]), bytes.fromhex(vector["datagram"])
        assert Sealing(key, connection_id, number).seal(packet) == (number, datagram), vector
        assert Opening(key, connection_id, number).open(datagram) == (number, packet), vector
    for vector in VECTORS["rejected_data"]:
        datagram = bytes.fromhex(vector["datagram"])
        assert Opening(bytes.fromhex(vector["first_key"]), datagram[1:9]).open(datagram) is None, vector


async def packet_numbers_agree_with_the_vectors(_):
    for vector in VECTORS["packet_numbers"]:
        assert udp_wire.recover_number(vector["low"], vector["expected"]) == vector["number"], vector
    for vector in VECTORS["replays"]:
        opening = Opening(bytes(32), bytes(8))
        for packet in vector["packets"]:
            assert opening.fresh(packet["number"]) == packet["accepted"], (vector["about"], packet)
            if packet["accepted"]:
                opening.accept(packet["number"])


CHECKS = [
    handshakes_agree_with_the_vectors,
    answers_agree_with_the_vectors,
    packets_agree_with_the_vectors,
    acknowledgements_agree_with_the_vectors,
    sealed_packets_agree_with_the_vectors,
    packet_numbers_agree_with_the_vectors,
]
