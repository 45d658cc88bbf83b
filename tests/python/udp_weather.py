"""What happens to datagrams on the way in the tests, by a seed."""

import random


class Weather:
    """Loses, doubles and mutates datagrams with these probabilities, each way, and lets some be overtaken by the next."""

    def __init__(self, seed, lost=0.0, doubled=0.0, mutated=0.0, overtaken=0.0):
        self.random = random.Random(seed)
        self.lost, self.doubled, self.mutated, self.overtaken = lost, doubled, mutated, overtaken
        self.held = {"out": [], "into": []}
        self.counts = {"lost": 0, "doubled": 0, "mutated": 0, "overtaken": 0}

    def out(self, datagram):
        return self.pass_on("out", datagram)

    def into(self, datagram):
        return self.pass_on("into", datagram)

    def pass_on(self, way, datagram):
        before, self.held[way] = self.held[way], []
        now = [] if self.happens("lost") else [datagram]
        if self.happens("doubled"):
            now.append(datagram)
        if self.happens("mutated"):
            now.insert(0, self.mutate(datagram))
        if now and not before and self.happens("overtaken"):
            self.held[way], now = now, []
        return now + before

    def happens(self, what):
        happens = self.random.random() < getattr(self, what)
        self.counts[what] += happens
        return happens

    def mutate(self, datagram):
        changed = bytearray(datagram)
        changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)
