"""Seeds made from addresses, so that every draw is a function of where it belongs and no generator lives on."""

import hashlib


def seed_of(*parts: object) -> int:
    """A generator's seed for these parts of an address such as (seed, "draw", step, part, process); 56 bits, uniform."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
