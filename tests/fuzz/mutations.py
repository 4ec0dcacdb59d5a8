"""Hostile versions of a small sound file, made by a random generator: as bytes, and in the structure of what they say."""

import copy
import json
import math
import random
from typing import Any

LONG = "x" * 5000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**70, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "\0", "\n", "a\nb", "\x1b[31mred", "\u2028", "\ud800", "é", "𝕏", LONG, "NaN", "1e999", "-1", "../../etc/passwd",
    "0", "true", "null", "[]", "{}", [], {}, [[]], [{}], {"": {}}, [None], [0] * 1000, {"a": {"a": {"a": 1}}},
)  # fmt: skip
DEEP = 3000


def deep(kind: str) -> str:
    return "[" * DEEP + "]" * DEEP if kind == "list" else '{"a":' * DEEP + "1" + "}" * DEEP


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Of everything inside."""
    found = [at]
    for key, own in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(own, (*at, key))
    return found


def structured(value: Any, rng: random.Random) -> Any:
    """One to three places of the value changed, lost, doubled or called otherwise."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(places(value)[1:] or [("",)])
        holder = value
        for key in way:
            holder = holder[key]
        if not isinstance(holder, (dict, list)) or last not in (holder if isinstance(holder, dict) else range(len(holder))):
            return rng.choice(VALUES)
        act = rng.randrange(4)
        if act == 0 or not holder:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
        elif act == 1:
            del holder[last]
        elif act == 2 and isinstance(holder, dict):
            name = rng.choice([v for v in VALUES if isinstance(v, str)])
            holder[rng.choice([name, f"{last}{name}", f"{last}." + "9" * 30])] = holder.pop(last)
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(rng.choice([holder[last], *VALUES])))
        else:
            holder[f"{last}2"] = copy.deepcopy(holder[last])
    return value


def text_of(value: Any, rng: random.Random) -> str:
    """JSON, now and then with something that JSON has not, or very deep."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05:
        return deep(rng.choice(["list", "dict"]))
    if rng.random() < 0.1 and ":" in text:
        at = rng.choice([i for i, c in enumerate(text) if c == ":"])
        text = text[: at + 1] + rng.choice(["1e999", "-Infinity", "9" * 5000, deep("list"), "0x1", "'a'"]) + text[at + 1 :]
    return text


def bytewise(data: bytes, rng: random.Random) -> bytes:
    own = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(own) + 1)
        act = rng.randrange(6)
        if act == 0 and own:
            own[at % len(own)] ^= 1 << rng.randrange(8)
        elif act == 1:
            del own[at : at + rng.choice([1, 2, 16, 200])]
        elif act == 2:
            own[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        elif act == 3:
            own[at:at] = own[at : at + rng.choice([1, 16, 100])]
        elif act == 4:
            own[at : at + 8] = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]).to_bytes(8, "little")
        else:
            del own[at:]
    return bytes(own)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Its header changed in structure, its tensors as they were."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = header.get("__metadata__", {})
    inside = [name for name, text in about.items() if text[:1] in "[{"]
    if inside and rng.random() < 0.4:  # JSON within the metadata
        name = rng.choice(inside)
        about[name] = text_of(structured(json.loads(about[name]), rng), rng)
        text = json.dumps(header)
    else:
        text = text_of(structured(header, rng), rng)
    new = text.encode("utf-8", "surrogatepass")
    return len(new).to_bytes(8, "little") + new + data[8 + length :]
