"""One end of a connection on `udp` (PROTOCOL.md section 14), without a socket and a clock: time comes in as `now`, in seconds.

It is the device's end. As what it is not (`device=False`) it serves for the other one where two of these speak with each other:
it tells a reset token and does not pad, but neither opens connections nor validates paths.
"""

import itertools
import random

from outcome import Closed, Lost
from udp_messages import FIRST_BYTES, FIRST_MESSAGES, PIECE_OVERHEAD_BYTES, Inbox, Outbox, Spans
from udp_packet import MAX_PIECES, MAX_RUNS, ack_of, decode_packet, encode_packet, is_eliciting
from udp_recovery import MAX_ACK_DELAY_S, Recovery, Sent
from udp_wire import MIN_DATA_BYTES, Broken, Opening, Sealing

KEEP_ALIVE_S = 25
CLOSING_S = 2
GIVE_UP_S = 60
LEAST_ELICITING_BYTES = 48
# The most that an acknowledgement, credit and the other small fields take of a packet together.
ACK_BYTES = 220
CREDIT_BYTES = 24


def may_travel(code):
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class Connection:
    """`handle_*` takes what happened, `poll_datagram` gives what to send, `deadline` says when to call `handle_time`.

    `messages` are those that arrived; `end` is why there will be no more, once there is a reason.
    """

    def __init__(self, keys, connection_id, window, now, max_datagram=1200, device=True, token=None, first=0):
        """`keys`: for sending, for receiving. `window`: ours, in messages and bytes."""
        self.sealing = Sealing(keys[0], connection_id, first)
        self.opening = Opening(keys[1], connection_id, first)
        self.device, self.max_datagram = device, max_datagram
        first_credit = (FIRST_MESSAGES, FIRST_BYTES)
        self.inbox = Inbox(*(window if device else first_credit))
        self.outbox = Outbox(*(first_credit if device else window))
        self.recovery = Recovery(max_datagram)
        self.messages, self.end = [], None
        self.received, self.unanswered, self.ack_at, self.largest_at = Spans(), 0, None, now
        self.responses, self.challenges = [], 0
        self.wanted = set() if device else {"token", "credit"}
        self.token, self.reset_token = token, None
        self.pings, self.ping, self.probe = 0, 0, False
        self.closing, self.closing_until, self.closed = None, None, None
        self.last_eliciting, self.heard_at, self.random = now, now, random.Random()
        self.keep_alive = self.draw_keep_alive()
        self.answers, self.close_acknowledged = True, False

    def draw_keep_alive(self):
        return KEEP_ALIVE_S * self.random.uniform(0.9, 1)

    # What the program asks for.

    def send(self, message):
        if self.closing is None:
            self.outbox.push(message)

    def want_ping(self):
        """A number that `ping` has reached once the pong is there."""
        self.pings += 1
        self.wanted.add("ping")
        return self.pings

    def close(self, code, now, reason="", at_once=False):
        if self.closing is not None or self.closed is not None:
            return
        if at_once:
            self.outbox.queue.clear()
        self.closing = {"code": code, "reason": reason, "messages": 0 if at_once else self.outbox.number}
        self.closing_until = now + CLOSING_S
        self.wanted.add("close")

    def reset(self):
        # After a close of this end it says as much as an acknowledgement: that may have been lost.
        self.close_acknowledged = self.closing is not None
        self.finish(Lost("reset"))

    def finish(self, end):
        self.end = self.end or end
        if self.unanswered:
            self.ack_at = float("-inf")

    # What comes in.

    def handle_datagram(self, datagram, now):
        """Whether it was a packet of this connection."""
        opened = None if self.end else self.opening.open(datagram)
        if opened is None:
            return False
        self.heard_at = now
        number, plain = opened
        try:
            self.handle_packet(number, decode_packet(plain), now)
        except Broken as broken:
            self.break_off(broken, now)
        return True

    def break_off(self, broken, now):
        self.close(broken.code, now, str(broken), at_once=True)

    def handle_packet(self, number, packet, now):
        arrived = self.inbox.take(packet.get("pieces", ()))
        if arrived is None:
            return
        self.note(number, is_eliciting(packet), now)
        if "ack" in packet:
            self.handle_ack(packet["ack"], now)
        if "credit" in packet:
            self.outbox.grant(packet["credit"])
        if packet.get("path_challenge"):
            self.challenges += 1
            self.responses = [packet["path_challenge"]]
        if "reset_token" in packet:
            self.reset_token = packet["reset_token"]
        self.hand_up(arrived)
        if "close" in packet and self.closed is None:
            self.closed, self.closing_until = packet["close"], now + CLOSING_S
        if self.inbox.owes_credit():
            self.wanted.add("credit")
        self.end_if_done()

    def note(self, number, eliciting, now):
        """Accepts a packet, and decides when to acknowledge it."""
        in_order = number == self.opening.expected
        if number >= self.opening.expected:
            self.largest_at = now
        self.opening.accept(number)
        self.received.add(number, number + 1)
        self.received.spans = self.received.spans[-MAX_RUNS:]
        if not eliciting or not self.answers:
            return
        self.unanswered += 1
        soon = now if self.unanswered > 1 or not in_order else now + MAX_ACK_DELAY_S
        self.ack_at = soon if self.ack_at is None else min(self.ack_at, soon)

    def handle_ack(self, ack, now):
        arrived, lost = self.recovery.on_ack(ack, now)
        for packet in arrived:
            for kind, *content in packet.contents:
                self.on_arrived(kind, content, now)
        self.outbox.forget_done()
        self.requeue(lost)

    def on_arrived(self, kind, content, now):
        if kind == "piece":
            message, start, end = content
            message.acknowledge(start, end, now)
        elif kind == "ping":
            self.ping = max(self.ping, *content)
        elif kind == "close":
            self.close_acknowledged = True

    def requeue(self, lost):
        for packet in lost:
            for kind, *content in packet.contents:
                if kind == "piece":
                    message, start, end = content
                    message.lose(start, end)
                elif kind != "ping" or content[0] > self.ping:
                    self.wanted.add(kind)

    def hand_up(self, messages):
        if self.closed and self.closed.get("messages", 0) <= 0:
            return
        self.messages += messages

    def end_if_done(self):
        if self.closed is not None and self.inbox.next >= self.closed.get("messages", 0):
            self.finish_closed()
        if self.closing and self.close_acknowledged and not self.outbox.queue:
            self.finish(Lost("closed by this end"))

    def finish_closed(self):
        code = self.closed.get("code", 0)
        self.finish(Closed(code if may_travel(code) else None, self.closed.get("reason", "")))

    # Time.

    def deadline(self):
        if self.end:
            return None
        times = [
            self.ack_at,
            self.recovery.loss_deadline(),
            self.recovery.probe_deadline(),
            self.closing_until,
            self.last_eliciting + self.keep_alive if self.device else None,
        ]
        return min(t for t in times + [float("inf")] if t is not None)

    def handle_time(self, now):
        if self.end:
            return
        if self.closing_until is not None and now >= self.closing_until:
            if self.closed is not None:
                self.finish_closed()
            else:
                self.finish(Lost("closed by this end"))
        self.requeue(self.recovery.lose(now))
        due = self.recovery.probe_deadline()
        if due is not None and now >= due:
            self.recovery.probes += 1
            self.probe = True
        if self.device and now >= self.last_eliciting + self.keep_alive:
            self.want_ping()
        since = self.outbox.waiting_since()
        if since is not None and now > since + GIVE_UP_S or self.recovery.sent and now > self.recovery.progress_at + GIVE_UP_S:
            self.finish(Lost("nothing is acknowledged"))

    # What goes out.

    def poll_datagram(self, now):
        """The next datagram, or None."""
        packet, contents = {}, []
        ack_due = self.ack_at is not None and now >= self.ack_at
        may_send = self.recovery.may_send() or self.probe
        if self.responses:
            packet["path_response"] = self.responses.pop()
        if may_send and not self.end:
            self.fill(packet, contents, now)
        if not packet and not ack_due:
            return None
        if self.unanswered and self.received.spans:
            packet["ack"] = self.acknowledgement(now)
        return self.seal(packet, contents, now)

    def acknowledgement(self, now):
        self.unanswered, self.ack_at = 0, None
        accepted = [(first, end - 1) for first, end in reversed(self.received.spans)]
        delay = int((now - self.largest_at) * 1e6)
        return ack_of(accepted) | {"delay_us": min(delay, (1 << 32) - 1)}

    def fill(self, packet, contents, now):
        room = self.max_datagram - MIN_DATA_BYTES - CREDIT_BYTES - (ACK_BYTES if self.unanswered else 0)
        if self.probe:
            self.wanted |= self.under_way()
        if "close" in self.wanted:
            packet["close"] = self.closing
            room -= 24 + len(self.closing["reason"].encode())
            contents.append(("close",))
        if "credit" in self.wanted:
            packet["credit"] = self.inbox.grant()
            contents.append(("credit",))
        if "token" in self.wanted:
            packet["reset_token"] = self.token
            room -= 18
            contents.append(("token",))
        if "ping" in self.wanted:
            packet["ping"] = True
            contents.append(("ping", self.pings))
        self.wanted.clear()
        if self.probe:
            pieces = self.oldest(room)
        else:
            pieces = list(itertools.islice(self.outbox.pieces(room, now), MAX_PIECES))
        if pieces:
            packet["pieces"] = [message.piece(start, end) for message, start, end in pieces]
            contents += [("piece", *piece) for piece in pieces]
        elif self.probe and not contents:
            packet["ping"] = True
            contents.append(("ping", self.pings))
        self.probe = False

    def under_way(self):
        """Small things that were sent and not acknowledged."""
        kinds = {kind for sent in self.recovery.sent.values() for kind, *_ in sent.contents}
        return kinds & {"close", "credit", "token"}

    def oldest(self, room):
        oldest = self.outbox.oldest()
        if oldest is None:
            return []
        message, start, end = oldest
        return [(message, start, min(end, start + room - PIECE_OVERHEAD_BYTES))]

    def seal(self, packet, contents, now):
        eliciting = is_eliciting(packet)
        plain = encode_packet(packet)
        short = LEAST_ELICITING_BYTES - MIN_DATA_BYTES - len(plain)
        if self.device and eliciting and short > 0:
            plain = encode_packet(packet | {"padding": max(0, short - 2)})
        number, datagram = self.sealing.seal(plain)
        assert len(datagram) <= self.max_datagram, len(datagram)
        self.recovery.on_sent(Sent(number, now, len(datagram), eliciting, contents))
        if eliciting:
            self.last_eliciting, self.keep_alive = now, self.draw_keep_alive()
        return datagram

    def seal_raw(self, plain):
        """A datagram of a packet that this end would not make."""
        number, datagram = self.sealing.seal(plain)
        self.recovery.next = number + 1
        return datagram
