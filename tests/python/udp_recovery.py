"""What became of the packets that were sent (PROTOCOL.md section 14.6): round-trip time, loss, probes, congestion.

After RFC 9002, without ECN and persistent congestion.
"""

from udp_packet import runs
from udp_wire import Broken

FIRST_RTT_S = 0.333
GRANULARITY_S = 0.001
MAX_ACK_DELAY_S = 0.025
MIN_PROBE_S, MAX_PROBE_S = 0.1, 8
REORDERED_PACKETS = 3
TIME_THRESHOLD = 9 / 8
FIRST_WINDOW, LEAST_WINDOW = 10, 2


class Sent:
    def __init__(self, number, at, size, eliciting, contents):
        self.number, self.at, self.size, self.eliciting, self.contents = number, at, size, eliciting, contents


class Recovery:
    def __init__(self, max_datagram):
        self.max_datagram = max_datagram
        self.window, self.threshold = FIRST_WINDOW * max_datagram, float("inf")
        self.latest, self.smoothed, self.variation, self.least = None, FIRST_RTT_S, FIRST_RTT_S / 2, None
        self.sent, self.in_flight, self.next = {}, 0, 0
        self.largest_acknowledged, self.recovery_from = -1, None
        self.probes, self.progress_at, self.full = 0, None, False

    def on_sent(self, sent):
        self.next = sent.number + 1
        if not sent.eliciting:
            return
        if not self.in_flight:
            self.progress_at = sent.at
        self.sent[sent.number] = sent
        self.in_flight += sent.size
        self.full = self.in_flight + self.max_datagram > self.window

    def may_send(self):
        return self.in_flight + self.max_datagram <= self.window

    def on_ack(self, ack, now):
        """(what arrived, what is lost), as packets."""
        largest = ack.get("largest", 0)
        if largest >= self.next:
            raise Broken(f"an acknowledgement of {largest}, which was not sent")
        arrived = []
        for first, last in runs(ack):
            arrived += [n for n in self.sent if first <= n <= last]
        arrived = [self.sent.pop(n) for n in sorted(set(arrived))]
        self.largest_acknowledged = max(self.largest_acknowledged, largest)
        if not arrived:
            return [], []
        if arrived[-1].number == largest:
            self.measure(now - arrived[-1].at, ack.get("delay_us", 0) / 1e6)
        for packet in arrived:
            self.in_flight -= packet.size
            self.grow(packet)
        self.probes, self.progress_at = 0, now
        return arrived, self.lose(now)

    def measure(self, rtt, delay):
        self.latest = rtt
        if self.least is None:
            self.least, self.smoothed, self.variation = rtt, rtt, rtt / 2
            return
        self.least = min(self.least, rtt)
        delay = min(delay, MAX_ACK_DELAY_S)
        adjusted = rtt - delay if rtt >= self.least + delay else rtt
        self.variation = 0.75 * self.variation + 0.25 * abs(self.smoothed - adjusted)
        self.smoothed = 0.875 * self.smoothed + 0.125 * adjusted

    def grow(self, packet):
        if not self.full or self.recovery_from is not None and packet.at <= self.recovery_from:
            return
        if self.window < self.threshold:
            self.window += packet.size
        else:
            self.window += self.max_datagram * packet.size / self.window

    def lose(self, now):
        lost = []
        for number in sorted(self.sent):
            packet = self.sent[number]
            if number > self.largest_acknowledged:
                break
            if self.largest_acknowledged - number >= REORDERED_PACKETS or now >= self.lost_at(packet):
                lost.append(self.sent.pop(number))
                self.in_flight -= packet.size
        if lost and (self.recovery_from is None or lost[-1].at > self.recovery_from):
            self.recovery_from = now
            self.window = max(self.window / 2, LEAST_WINDOW * self.max_datagram)
            self.threshold = self.window
        return lost

    def lost_at(self, packet):
        rtt = max(self.smoothed, self.latest or 0)
        return packet.at + max(TIME_THRESHOLD * rtt, GRANULARITY_S)

    def loss_deadline(self):
        waiting = [self.lost_at(p) for n, p in self.sent.items() if n < self.largest_acknowledged]
        return min(waiting, default=None)

    def probe_deadline(self):
        if not self.sent:
            return None
        timeout = max(self.smoothed + max(4 * self.variation, GRANULARITY_S) + MAX_ACK_DELAY_S, MIN_PROBE_S)
        last = max(p.at for p in self.sent.values())
        return max(last, self.progress_at) + min(timeout * 2**self.probes, MAX_PROBE_S)
