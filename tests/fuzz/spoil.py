"""Ways to spoil bytes, texts and JSON, drawn from one random generator: the same seed spoils alike."""

import copy
import json
import random
from typing import Any

NASTY = (
    "", " ", "\0", "\n", "\r", "\x0b", "\x0c", "\x1b[31m", "\u0085", "\u2028", "\u2029", "\ufeff", "\ufffd", "²", "٣",
    "é", "日本", "א", "👩‍👩‍👧", "\u202e", "$$", "$x$", "%s", "{0}", "{{7*7}}", "<b>", "![x](http://127.0.0.1:9/)",
    "../..", "/dev/zero", "http://127.0.0.1:9/x", "-", "--", "=", ",", ":", ";", "'", '"', "`", "\\", "nan", "inf",
    "-inf", "1e999", "-1", "0", "1.5", "0x10", "1_000", "99999999999999999999", "True", "None", "null", "x" * 300,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -1.5, 2**31, 2**63, 10**30, 1e300, "", "x", "dense", "\u2028", [], {}, [[]],
    [1, "a"], {"a": 1}, ["dense"], "window:window=0", "/dev/zero",
)  # fmt: skip
OTHER = (
    b"", b"\0", b"{}", b"[]", b"null", b"1", b'"x"', b"\xff\xfe\0\0", b"[" * 200_000, b'{"a":' * 100_000,
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"PK\x03\x04" + bytes(60), b"PK\x05\x06" + bytes(18),
    b"\x93NUMPY\x01\0\xff\xff{", b"\x93NUMPY\x09\x09",
    b"GGUF\x03\0\0\0" + b"\xff" * 16, b"PAR1PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80\x04\x95",
    b"\x1f\x8b\x08" + bytes(9), b"\n" * 1000,
)  # fmt: skip


def spoiled(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Bytes cut, flipped, garbled, or of another kind."""
    how = chance.randrange(10)
    if how == 0:
        return chance.choice([*OTHER, *others])
    if not data or how == 1:
        return data[: chance.randrange(len(data) + 1)]
    if how in (2, 3):
        made = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
            made[chance.randrange(len(made))] = chance.randrange(256)
        return bytes(made)
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice((1, 2, 8, 100, 4096)))
    if how == 4:
        return data[:begin] + data[end:]
    if how == 5:
        return data[:end] + data[begin:]
    if how == 6:
        return data[:begin] + chance.randbytes(chance.choice((1, 4, 100))) + data[end:]
    if how == 7:
        return data[:begin] + bytes(end - begin) + data[end:]
    if how == 8:
        return data + chance.choice([*OTHER, *others])[:4096]
    return _at_head(data, chance)


def _at_head(data: bytes, chance: random.Random) -> bytes:
    """Headers are where lengths and kinds stand."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 2, 4))):
        made[chance.randrange(min(len(made), 160))] = chance.choice((*b"0123456789(),'<>|OiufV", 0, 255, 127, 128))
    return bytes(made)


def spoiled_json(text: str, chance: random.Random) -> str:
    """JSON with one thing in it of another kind, or gone, or new; or two."""
    whole = json.loads(text)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(_places(whole))
        if not places:
            break
        inside, key = chance.choice(places)
        how = chance.randrange(6)
        if how == 0 and isinstance(inside, dict):
            del inside[key]
        elif how == 1 and isinstance(inside, dict):
            inside[chance.choice((*NASTY, "spec", "status", "x"))] = _value(chance)
        elif how == 2 and isinstance(inside, list):
            inside.insert(key, _value(chance))
        elif how == 3:
            inside[key] = chance.choice(NASTY)
        else:
            inside[key] = _value(chance)
    return json.dumps(whole)


def _value(chance: random.Random) -> Any:
    """One of VALUES, that nobody else changes."""
    return copy.deepcopy(chance.choice(VALUES))


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in list(items):
        yield value, key
        yield from _places(inside)


def spoiled_text(text: str, chance: random.Random) -> str:
    """A text with something put in, taken out or doubled."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((0, 1, 1, 3, 10)))
        text = text[:at] + chance.choice((chance.choice(NASTY), text[at:end] * 2, "")) + text[end:]
    return text
