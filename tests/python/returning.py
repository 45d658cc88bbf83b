"""Whether and when a device comes back by itself (PROTOCOL.md sections 6.3, 10 and 11).

`Returning` are the rules, without a clock and without dice of their own; `Program` keeps a device connected by them.
"""

import contextlib
import json
import random
import time
from types import SimpleNamespace

from websockets.exceptions import InvalidStatus, WebSocketException

import secure
from channels import CHANNELS
from checks import Device, control
from outcome import Closed, Lost
from udp import Refused

MAX_HINT_S = 600
FIRST_S, CAP_S = 0.5, 60
# A connection that lasted so long after its login sets the backoff back.
LASTING_S = 10
# For so long after a loss what was lost may still log in and replace the newer connection.
LATEST_LOGIN_S = 300
REPLACED = 4000
# Closes that say "no": done, replaced, closed by an operator, login refused.
FINAL = {1000, REPLACED, 4001, 4004}


class Returning:
    def __init__(self, channel):
        self.channel, self.failures = channel, 0
        # When an attempt was last given up or a connection lost, of which the server may not know.
        self.logged_in_at = self.lost_at = None

    def attempt(self):
        self.failures += 1

    def logged_in(self, now):
        self.logged_in_at = now

    def refused(self, now, refusal):
        """`refusal` has `status`, `retryable` (None if Holdfast did not say) and `hint_s`."""
        self.end(now)
        if refusal.retryable is not False:
            return self.back(refusal.hint_s)
        if self.channel == "wss":
            return stay_away(f"refused with {refusal.status}")
        # Anybody on the way can have made it, so it is no reason to stay away; but it is one not to hurry.
        return self.back(MAX_HINT_S)

    def ended(self, now, code=None, goodbye=None):
        """An attempt or a connection. `code` and `goodbye` are what may be believed: None where nothing came."""
        recently = self.lost_at is not None and now - self.lost_at < LATEST_LOGIN_S
        self.end(now)
        goodbye = goodbye or {}
        no = code in FINAL or goodbye.get("reconnect") is False
        replaced = code == REPLACED or goodbye.get("code") == "replaced"
        if code is None and not replaced:
            self.lost_at = now
        if no and not (replaced and recently):
            return stay_away(f"closed with {code}, {goodbye}")
        return self.back(goodbye.get("retry_after_ms", 0) / 1000)

    def end(self, now):
        if self.logged_in_at is not None and now - self.logged_in_at >= LASTING_S:
            self.failures = 0
        self.logged_in_at = None

    def back(self, hint_s):
        return SimpleNamespace(back=True, least_s=min(hint_s, MAX_HINT_S), spread_s=min(CAP_S, FIRST_S * 2**self.failures))


def stay_away(why):
    return SimpleNamespace(back=False, why=why)


def refusal_of(error):
    """What a refusal says, on any channel."""
    if isinstance(error, Refused):
        return SimpleNamespace(
            status=error.status, code=error.code, retryable=error.retryable, hint_s=error.retry_after_ms / 1000
        )
    answer, problem = error.response, {}
    if answer.headers.get("Content-Type") == "application/problem+json":
        with contextlib.suppress(ValueError):
            problem = json.loads(answer.body)
    retryable, hint_s = problem.get("retryable"), problem.get("retry_after_ms", 0) / 1000
    # In seconds; as a date it is nothing that Holdfast says.
    after = answer.headers.get("Retry-After", "")
    hint_s = max(hint_s, int(after)) if after.isascii() and after.isdigit() else hint_s
    return SimpleNamespace(status=answer.status_code, code=problem.get("code"), retryable=retryable, hint_s=hint_s)


class StaysAway(Exception):
    """The rules say so."""


class Program:
    """Keeps one device connected: `online`, then `left` when the connection is used up, and again."""

    def __init__(self, gateway, sleep, clock=time.monotonic):
        self.gateway, self.sleep, self.clock = gateway, sleep, clock
        self.rules = Returning(gateway.channel)
        self.resources = contextlib.AsyncExitStack()
        # What there was, in order: refusals, and what the rules made of everything.
        self.refusals, self.verdicts = [], []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.resources.aclose()

    async def online(self):
        """A device that has logged in, after as many attempts as it takes. Raises StaysAway."""
        while True:
            if self.verdicts:
                await self.wait(self.verdicts[-1])
            self.rules.attempt()
            try:
                channel = await self.resources.enter_async_context(CHANNELS[self.gateway.channel].open(self.gateway))
                await channel.send('@hello {"instance":"python"}')
                word, body = control(await channel.receive())
            except (InvalidStatus, Refused) as error:
                self.refusals.append(refusal_of(error))
                self.verdicts.append(self.rules.refused(self.clock(), self.refusals[-1]))
            except Closed as closed:
                await self.ended(closed.code, None)
            except (Lost, OSError, WebSocketException, secure.Rejected):
                await self.ended(None, None)
            else:
                if word == "@welcome":
                    self.rules.logged_in(self.clock())
                    return Device(channel, body)
                await self.left(Device(channel, None), body)

    async def wait(self, verdict):
        if not verdict.back:
            raise StaysAway(verdict.why)
        await self.sleep(verdict.least_s + random.uniform(0, verdict.spread_s))

    async def left(self, device, goodbye=None):
        """Reads on to the end of the connection; gives its code (None if it was lost), @goodbye and the verdict."""
        while True:
            try:
                message = await device.channel.receive()
            except Closed as closed:
                return closed.code, goodbye, await self.ended(closed.code, goodbye)
            except Lost:
                return None, goodbye, await self.ended(None, goodbye)
            if isinstance(message, str) and message.startswith("@goodbye"):
                _, goodbye = control(message)

    async def ended(self, code, goodbye):
        await self.resources.aclose()
        self.verdicts.append(self.rules.ended(self.clock(), code, goodbye))
        return self.verdicts[-1]
