"""Messages on `udp` (PROTOCOL.md sections 14.7 and 14.8): cut into pieces, put together again, each way within its credit."""

from collections import deque

from udp_packet import encode_piece
from udp_wire import Broken

TEXT, BINARY = 0, 1
FIRST_MESSAGES, FIRST_BYTES = 8, 16_384
PIECE_COST_BYTES = 64
CREDIT_AHEAD = 1 << 32
# What a piece's fields take at most beside its data: their keys, lengths and numbers.
PIECE_OVERHEAD_BYTES = 32


class Spans:
    """Disjoint half-open spans of numbers, in order."""

    def __init__(self):
        self.spans = []

    def add(self, start, end):
        merged = []
        for first, last in self.spans:
            if last < start or first > end:
                merged.append((first, last))
            else:
                start, end = min(start, first), max(end, last)
        merged.append((start, end))
        merged.sort()
        self.spans = merged

    def missing(self, start, end):
        """The spans between `start` and `end` that are not here."""
        for first, last in self.spans:
            if last <= start or first >= end:
                continue
            if first > start:
                yield start, first
            start = max(start, last)
        if start < end:
            yield start, end

    def head(self):
        """How far it goes from 0 without a gap."""
        return self.spans[0][1] if self.spans and self.spans[0][0] == 0 else 0

    def pieces_apart(self):
        return len(self.spans) - (self.head() > 0)


class Outgoing:
    """A message on its way: `sent` bytes of it at least once, `again` what was lost, `arrived` what was acknowledged;
    `waits_since` is when it was begun or some of it arrived."""

    def __init__(self, number, kind, data):
        self.number, self.kind, self.data = number, kind, data
        self.sent, self.waits_since, self.again, self.arrived = 0, None, [], Spans()
        self.done = False

    def begun(self):
        return self.waits_since is not None

    def piece(self, start, end):
        piece = {"message": self.number, "kind": self.kind, "data": self.data[start:end]}
        if (start, end) != (0, len(self.data)):
            piece |= {"length": len(self.data), "offset": start}
        return piece

    def acknowledge(self, start, end, now):
        self.arrived.add(start, end)
        self.waits_since = now
        self.done = self.arrived.head() == len(self.data)

    def lose(self, start, end):
        if not self.data:
            self.again += [] if self.done else [(0, 0)]
        else:
            self.again += self.arrived.missing(start, end)


class Outbox:
    """What one end sends."""

    def __init__(self, messages, size):
        self.credit_messages, self.credit_bytes = messages, size
        self.queue, self.number, self.sent_bytes = deque(), 0, 0

    def push(self, message):
        kind, data = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        self.push_raw(kind, data)

    def push_raw(self, kind, data):
        self.queue.append(Outgoing(self.number, kind, data))
        self.number += 1

    def grant(self, credit):
        messages, size = credit.get("messages", 0), credit.get("bytes", 0)
        begun = sum(m.begun() for m in self.queue)
        waiting = len(self.queue) - begun
        if messages >= self.number - waiting + CREDIT_AHEAD or size >= self.sent_bytes + CREDIT_AHEAD:
            raise Broken("credit for more than anybody would send")
        self.credit_messages = max(self.credit_messages, messages)
        self.credit_bytes = max(self.credit_bytes, size)

    def pieces(self, room, now):
        """Pieces for a packet with `room` bytes left: what was lost first, then what is new. Yields (message, start, end)."""
        for message in self.queue:
            while message.again and room > PIECE_OVERHEAD_BYTES:
                start, end = message.again.pop(0)
                cut = min(end, start + room - PIECE_OVERHEAD_BYTES)
                if cut < end:
                    message.again.insert(0, (cut, end))
                room -= len(encode_piece(message.piece(start, cut)))
                yield message, start, cut
        for message in self.queue:
            while self.may_begin(message) and room > PIECE_OVERHEAD_BYTES:
                start = message.sent
                credit = self.credit_bytes - self.sent_bytes
                cut = min(len(message.data), start + min(credit, room - PIECE_OVERHEAD_BYTES))
                if cut == start and message.data:
                    return
                if start == message.arrived.head():
                    # Nothing of it was under way.
                    message.waits_since = now
                message.sent = cut
                self.sent_bytes += cut - start
                room -= len(encode_piece(message.piece(start, cut)))
                yield message, start, cut
            if message.sent < len(message.data) or not message.begun():
                return

    def may_begin(self, message):
        unsent = not message.begun() or message.sent < len(message.data)
        return unsent and message.number < self.credit_messages

    def has_more(self):
        """Whether `pieces` would give any."""
        for message in self.queue:
            if message.again:
                return True
            if self.may_begin(message) and (not message.data or self.credit_bytes > self.sent_bytes):
                return True
            if message.sent < len(message.data) or not message.begun():
                return False
        return False

    def forget_done(self):
        self.queue = deque(m for m in self.queue if not m.done)

    def oldest(self):
        """(message, start, end) of the oldest content that is under way, for a probe, and None if there is none."""
        for message in self.queue:
            if not message.begun():
                return None
            if not message.data:
                return message, 0, 0
            for start, end in message.arrived.missing(0, message.sent):
                return message, start, end
        return None

    def waiting_since(self):
        """Since when something is under way of which nothing arrived."""
        waiting = (m.waits_since for m in self.queue if m.begun() and (not m.data or m.arrived.head() < m.sent))
        return min(waiting, default=None)


class Incoming:
    """A message that is not whole yet."""

    def __init__(self, kind, length):
        self.kind, self.length = kind, length
        self.data, self.here, self.highest = bytearray(), Spans(), 0

    def whole(self):
        return self.here.head() == self.length


class Inbox:
    """What one end receives."""

    def __init__(self, messages, size, limit=None):
        self.window_messages, self.window_bytes, self.limit = messages, size, limit
        self.granted_messages, self.granted_bytes = messages, size
        self.parts, self.next, self.handed_bytes, self.ahead_bytes = {}, 0, 0, 0
        self.grants = True

    def totals(self):
        """The credit of the moment."""
        if not self.grants:
            return {"messages": self.granted_messages, "bytes": self.granted_bytes}
        first = self.parts.get(self.next)
        head = first.here.head() if first else 0
        return {
            "messages": self.next + self.window_messages,
            "bytes": self.handed_bytes + head + self.window_bytes,
        }

    def grant(self):
        totals = self.totals()
        self.granted_messages, self.granted_bytes = totals["messages"], totals["bytes"]
        return totals

    def owes_credit(self):
        totals = self.totals()
        return (
            2 * (totals["messages"] - self.granted_messages) >= self.window_messages
            or 2 * (totals["bytes"] - self.granted_bytes) >= self.window_bytes
        )

    def take(self, pieces):
        """The messages that these pieces complete, or None if they find no room: then nothing was taken. Raises Broken."""
        pieces = [self.check(piece) for piece in pieces if piece.get("message", 0) >= self.next]
        if not self.has_room(pieces):
            return None
        for piece in pieces:
            self.put(*piece)
        return list(self.whole())

    def check(self, piece):
        data = piece.get("data", b"")
        length = piece.get("length", 0) or len(data)
        number, kind = piece.get("message", 0), piece.get("kind", 0)
        if self.limit is not None and length > self.limit:
            raise Broken(f"a message of {length} bytes", 1009)
        known = self.parts.get(number)
        if known and (known.kind, known.length) != (kind, length):
            raise Broken(f"message {number} is now of kind {kind} and {length} bytes")
        return number, kind, length, piece.get("offset", 0), data

    def has_room(self, pieces):
        """Credit and pieces apart; who goes beyond the credit by more than a window breaks the protocol."""
        size, highest, said, apart = self.handed_bytes + self.ahead_bytes, {}, {}, self.pieces_apart()
        for number, kind, length, offset, data in pieces:
            if said.setdefault(number, (kind, length)) != (kind, length):
                raise Broken(f"message {number} is two things in one packet")
            known = self.parts.get(number)
            before = highest.get(number, known.highest if known else 0)
            highest[number] = max(before, offset + len(data))
            size += highest[number] - before
            if number >= self.granted_messages + self.window_messages:
                raise Broken(f"message {number} is far beyond the credit")
            if size > self.granted_bytes + self.window_bytes:
                raise Broken(f"{size} bytes are far beyond the credit")
            if number >= self.granted_messages or size > self.granted_bytes:
                return False
            if not self.is_next(number, offset):
                apart += 1
        return apart <= self.window_bytes // PIECE_COST_BYTES + self.window_messages or all(
            self.is_next(number, offset) for number, _, _, offset, _ in pieces
        )

    def is_next(self, number, offset):
        first = self.parts.get(self.next)
        return number == self.next and offset <= (first.here.head() if first else 0)

    def pieces_apart(self):
        return sum(part.here.pieces_apart() if n == self.next else len(part.here.spans) for n, part in self.parts.items())

    def put(self, number, kind, length, offset, data):
        part = self.parts.setdefault(number, Incoming(kind, length))
        end = offset + len(data)
        if len(part.data) < end:
            part.data.extend(bytes(end - len(part.data)))
        part.data[offset:end] = data
        self.ahead_bytes += max(0, end - part.highest)
        part.highest = max(part.highest, end)
        part.here.add(offset, end)

    def whole(self):
        while (part := self.parts.get(self.next)) and part.whole():
            del self.parts[self.next]
            self.next += 1
            self.ahead_bytes -= part.length
            self.handed_bytes += part.length
            if part.kind == BINARY:
                yield bytes(part.data)
                continue
            try:
                yield part.data.decode()
            except UnicodeDecodeError:
                raise Broken("text that is not UTF-8", 1007) from None
