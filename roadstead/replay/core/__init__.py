"""The pure part: what is planned, what must have come of it, and the figures."""
