#!/usr/bin/env python3
"""A Holdfast device in Python, written from PROTOCOL.md alone, on a plain WebSocket library and a Noise library.

It proves that the protocol can be spoken without our SDK, on `ws`, `wss` and `udp`. Run by tests/python_device.rs, which passes
where the gateway is and what to present as JSON in argv[1]:

    {"plan": "promises" or "returning", "channel": "ws", "wss" or "udp", "url": url, "ca": path, "token": jwt, "bad_token": jwt, "device": id,
     "identity": {"key_id", "product", "class", "device", "key_version"}, "device_key": base64url,
     "api": url, "api_key": secret, "close_after_ms": n, "challenge_ms": n,
     "lossy": bool, "crash_requests": n,
     "devices": {id: {"identity", "device_key", "token"}, ...} for "returning"}

Prints one TAP line per check and exits 1 if any failed.
"""

import asyncio
import json
import sys
import traceback
from types import SimpleNamespace

import checks
import checks_returning
import checks_udp
import checks_udp_opening
import checks_udp_packets
import checks_ws
import secure
import udp_vectors


OF_CHANNEL = {
    "wss": checks.WEB_SOCKET_CHECKS,
    "ws": checks.WEB_SOCKET_CHECKS + checks_ws.CHECKS,
    "udp": udp_vectors.CHECKS + checks_udp_packets.CHECKS + checks_udp_opening.CHECKS + checks_udp.CHECKS,
}


def plan(gateway):
    if gateway.plan == "returning":
        return checks_returning.CHECKS + checks_returning.OF_CHANNEL[gateway.channel]
    # In weather of somebody else's making what is asked is whether it shows.
    return checks.CHECKS + ([] if gateway.lossy else OF_CHANNEL[gateway.channel])


async def main():
    gateway = SimpleNamespace(**json.loads(sys.argv[1]))
    gateway.key = secure.from_text(gateway.device_key)
    chosen = plan(gateway)
    print(f"1..{len(chosen)}")
    failed = 0
    for number, check in enumerate(chosen, 1):
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
