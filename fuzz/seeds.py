#!/usr/bin/env python3
"""Puts into fuzz/corpus what each decoder of `ws` takes, and nearly takes: from the test vectors. Run it before fuzzing."""

import base64
import json
import pathlib

HERE = pathlib.Path(__file__).parent
VECTORS = json.loads((HERE / "../proto/vectors/ws.json").read_text())

REQUEST = """GET /connect HTTP/1.1\r
Host: gateway.example\r
Upgrade: websocket\r
Connection: keep-alive, Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
{}\r
\r
"""


def from_text(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def credentials():
    accepted = [vector["credential"] for vector in VECTORS["handshakes"]]
    rejected = [vector["credential"] for vector in VECTORS["rejected_credentials"]]
    for text in accepted + rejected:
        try:
            yield from_text(text)
        except ValueError:  # Some are no base64url.
            yield text.encode()
    for vector in VECTORS["control_records"] + VECTORS["rejected_control_records"]:
        yield bytes.fromhex(vector["data"])
    for vector in VECTORS["device_keys"]:
        yield vector["device_key"].encode()


def challenges():
    for name in ["handshakes", "accepted_challenges", "rejected_challenges", "unverified_challenges"]:
        for vector in VECTORS[name]:
            if "challenge" in vector:
                yield vector["challenge"].encode()


def upgrades():
    credential = VECTORS["handshakes"][0]["credential"]
    for field in [
        f"Authorization: Holdfast {credential}",
        f"Sec-WebSocket-Protocol: holdfast.v1, noise.{credential}",
        "Authorization: Bearer eyJ.eyJ.c2ln",
        "Sec-WebSocket-Protocol: holdfast.v1, bearer.eyJ.eyJ.c2ln",
        "Authorization: Bearer eyJ.eyJ.c2ln\r\nAuthorization: Bearer eyJ.eyJ.c2ln",
    ]:
        yield REQUEST.format(field).encode()


for target, seeds in {"secure_credential": credentials, "challenge": challenges, "upgrade": upgrades}.items():
    corpus = HERE / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"vector-{number}").write_bytes(seed)
