"""How a connection ends, or does not begin, on any channel."""


class Closed(Exception):
    """The server said that the connection is over, in a way that may be believed."""

    def __init__(self, code, reason):
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Lost(Exception):
    """The connection is over, and nobody who may be believed said why."""
