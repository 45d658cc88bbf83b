"""Two ends of our own on a virtual clock, with weather between them."""

import heapq
import itertools
import os

from udp_connection import Connection

DELAY_S = 0.03
JITTER_S = 0.01
PATIENCE_S = 600


class Ends:
    """A device and the other end of its connection, open."""

    def __init__(self, weather, window=(16, 65_536), first=0, max_datagram=1200):
        up, down, connection_id = os.urandom(32), os.urandom(32), os.urandom(8)
        self.now, self.weather, self.on_way, self.order = 1000.0, weather, [], itertools.count()
        ends = ((up, down), True), ((down, up), False)
        self.device, self.server = (
            Connection(keys, connection_id, window, self.now, max_datagram, device, os.urandom(16), first)
            for keys, device in ends
        )
        self.datagrams = 0

    def run_until(self, condition):
        until = self.now + PATIENCE_S
        while not condition():
            self.pump()
            times = [self.device.deadline(), self.server.deadline(), self.on_way[0][0] if self.on_way else None]
            at = min((t for t in times if t is not None), default=until)
            assert at < until, "nothing happens any more"
            self.now = max(self.now + 1e-4, at)
            for end in (self.device, self.server):
                if (end.deadline() or until) <= self.now:
                    end.handle_time(self.now)
            while self.on_way and self.on_way[0][0] <= self.now:
                _, _, end, datagram = heapq.heappop(self.on_way)
                end.handle_datagram(datagram, self.now)

    def pump(self):
        for end, other, way in (
            (self.device, self.server, self.weather.out),
            (self.server, self.device, self.weather.into),
        ):
            while (datagram := end.poll_datagram(self.now)) is not None:
                self.datagrams += 1
                for passed in way(datagram):
                    at = self.now + DELAY_S + JITTER_S * self.weather.random.random()
                    heapq.heappush(self.on_way, (at, next(self.order), other, passed))
