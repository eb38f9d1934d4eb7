"""Mutants of signed messages, most of them signed again by the insider who sent the original."""

import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import rfc8785

PREFIX = struct.Struct("<5sBBII")
PATHS = ("../../etc/passwd", "/dev/null", "..", "a/b", "a\\b", ".ssh", "con", "a\n", "a\0b", "-rf")
NAMES = ("server", "decryptor", "network", "a", "b", "f", "z", "a.holder", "g0", "g1", "study")
ODD: tuple[Any, ...] = (
    *(0, 1, 2, 3, -1, 2**31 - 1, 2**31, 2**53 - 1, 1.0, 1.5, 1e300, -0.0, True, False, None),
    *("", "é", "\u202eabc", "\U0001f600", "a" * 128, "a" * 129, "1", "0" * 64, "F" * 64, "0" * 63),
    *([], {}, [1], ["a"], [[]], {"a": 1}, [0, 1], [1, 0], [0, 2**31], [0, 31], [29, 40], [0, 40]),
)


class NoFrameError(Exception):
    """Too short to be taken apart."""


@dataclass(frozen=True)
class Original:
    """An honest message taken apart, and how its sender signs."""

    blob: bytes
    sign: Callable[[bytes], bytes]

    @property
    def code(self) -> int:
        return self.blob[6]

    @property
    def header(self) -> dict[str, Any]:
        return dict(json.loads(self.text))

    @property
    def text(self) -> bytes:
        if len(self.blob) < PREFIX.size:
            raise NoFrameError
        size = PREFIX.unpack_from(self.blob)[3]
        return self.blob[PREFIX.size : PREFIX.size + size]

    @property
    def body(self) -> bytes:
        return self.blob[PREFIX.size + len(self.text) : -64]

    def signed(self, unsigned: bytes) -> bytes:
        return unsigned + self.sign(unsigned)

    def framed(self, header: Any, body: bytes, *lengths: int) -> bytes:
        """A frame around any header; in the canonical form if it has one."""
        text = header if isinstance(header, bytes) else encoded(header)
        sizes = lengths or (len(text), len(body))
        return self.signed(PREFIX.pack(b"NATFL", 1, self.code, *sizes) + text + body)


def encoded(value: Any) -> bytes:
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return json.dumps(value).encode()


class Mutants:
    """An endless supply, the same for the same seed; `unsigned` counts those not signed again."""

    def __init__(self, originals: list[Original], seed: int) -> None:
        self.draw, self.originals, self.unsigned, self.made = random.Random(seed), originals, 0, 0
        self.genuine = {one.blob for one in originals} - {b""}
        self.kinds = (
            self.bits,
            self.lengths,
            self.value,
            self.value,
            self.raw_header,
            self.names,
            self.stages,
            self.digests,
            self.lists,
            self.residues,
            self.splice,
        )

    def of(self, original: Original) -> tuple[str, bytes]:
        """The sort of the next mutant and its bytes."""
        self.made += 1
        lot = self.draw.random()
        if lot < 0.01:
            return "identity", original.blob
        if lot < 0.07:
            self.unsigned += 1
            return "unsigned", self.flipped(original.blob)
        make = self.draw.choice(self.kinds)
        made = make(original)
        # Another party's genuine message is no mutant.
        return (make.__name__, made) if made not in self.genuine else self.of(original)

    def flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        if not changed:
            return data
        for _ in range(self.draw.choice((1, 1, 2, 8))):
            changed[self.draw.randrange(len(changed))] ^= 1 << self.draw.randrange(8)
        return bytes(changed)

    def bits(self, one: Original) -> bytes:
        head = PREFIX.size + len(one.text)
        front, rest = one.blob[:head], one.blob[head:-64]
        return one.signed(self.flipped(front) + rest)

    def lengths(self, one: Original) -> bytes:
        sizes = [len(one.text), len(one.body)]
        at = self.draw.randrange(2)
        grown = (sizes[at] + 1, max(sizes[at] - 1, 0))
        sizes[at] = self.draw.choice((0, 1, 2**18, 2**18 + 1, 2**26, 2**31, 2**32 - 1, *grown))
        if self.draw.random() < 0.3:
            sizes = [sum(sizes) - sizes[1] // 2, sizes[1] // 2]
        return one.framed(one.text, one.body, *(size % 2**32 for size in sizes))

    def value(self, one: Original) -> bytes:
        """One value anywhere in the header is another, is gone, or has company."""
        header = one.header
        holder, key = self.draw.choice(list(_places(header)))
        lot = self.draw.random()
        if lot < 0.1:
            del holder[key]
        elif lot < 0.2 and isinstance(holder, dict):
            holder[self.draw.choice((*NAMES, "__class__", "body", "Session"))] = holder[key]
        elif lot < 0.5 and isinstance(holder[key], int):
            holder[key] += self.draw.choice((-1, -1, 1, 1, 2, 2**31))
        else:
            holder[key] = self.draw.choice((*ODD, *PATHS, *NAMES))
        return one.framed(header, one.body)

    def raw_header(self, one: Original) -> bytes:
        text, number = one.text, str(self.draw.choice((10**400, 2**64, "1e5", "NaN", "-0", "01")))
        at = self.draw.randrange(len(text))
        edits = (
            text[:at] + b" " + text[at:],
            text[:at] + self.draw.randbytes(3) + text[at:],
            text[:at] + text[at + 1 :],
            b"\xef\xbb\xbf" + text,
            text + self.draw.choice((b" ", b"\n", b"\0", b"{}")),
            b'{"attempt":1,' + text[1:],
            text[:-1] + b"," + text[1:],
            text.replace(b"study", b"st\\u0075dy"),
            text.replace(b"study", b"st\\ud800dy"),
            text.replace(b'"round":1', b'"round":' + number.encode()),
            self.draw.choice((b"[", b'{"a":')) * self.draw.choice((10, 200, 5000)),
            text.replace(b'"', b"'"),
        )
        return one.framed(self.draw.choice(edits), one.body)

    def names(self, one: Original) -> bytes:
        header = one.header
        named = [
            key for key in header if key in ("sender", "group", "holder", "receiver", "session")
        ]
        header[self.draw.choice(named)] = self.draw.choice((*NAMES, *PATHS))
        return one.framed(header, one.body)

    def stages(self, one: Original) -> bytes:
        header = one.header
        field = self.draw.choice(("round", "attempt", "session"))
        other = self.draw.choice((0, 1, 2, 3, 2**31 - 1, 2**31))
        header[field] = self.draw.choice(("study", "other")) if field == "session" else other
        return one.framed(header, one.body)

    def digests(self, one: Original) -> bytes:
        header = one.header
        found = [place for place in _places(header) if len(str(place[0][place[1]])) == 64]
        if not found:
            return self.value(one)
        holder, key = self.draw.choice(found)
        other = self.draw.choice(self.originals).blob[:-64]
        wrong = list(holder[key])
        wrong[self.draw.randrange(64)] = self.draw.choice("0123456789abcdef")
        options = ("".join(wrong), "0" * 64, hashlib.sha256(other).hexdigest(), holder[key].upper())
        holder[key] = self.draw.choice(options)
        return one.framed(header, one.body)

    def lists(self, one: Original) -> bytes:
        """Elements of a list, or of all lists of the header together, go, double or move."""
        header = one.header
        whole = [holder[key] for holder, key in _places(header) if isinstance(holder[key], list)]
        if not any(whole):
            return self.value(one)
        chosen = whole if self.draw.random() < 0.4 else [self.draw.choice(whole)]
        move, lot = self.draw.randrange(4), self.draw.random()
        for values in (values for values in chosen if values):
            at = int(lot * len(values))
            if move == 0:
                del values[at]
            elif move == 1:
                values.insert(at, values[-1])
            elif move == 2:
                values[0], values[at] = values[at], values[0]
            else:
                values.append(self.draw.choice((values[0], "z", 1)))
        return one.framed(header, one.body)

    def residues(self, one: Original) -> bytes:
        """The body: zeros, ones, noise, out of range, longer, shorter; its digest kept in step."""
        body, header = one.body, one.header
        at = self.draw.randrange(len(body) + 1)
        edits = (
            bytes(len(body)),
            b"\xff" * len(body),
            self.draw.randbytes(len(body)),
            self.flipped(body),
            bytes([body[0] ^ 1]) + body[1:] if body else b"\0",
            body[:at] + b"\xff" * 8 + body[at + 8 :],
            body[:-1],
            body + b"\0",
            b"",
            body[at:] + body[:at],
            body + body,
        )
        made = self.draw.choice(edits)
        if "sha256" in header and self.draw.random() < 0.7:
            header["sha256"] = hashlib.sha256(made).hexdigest()
        return one.framed(header, made)

    def splice(self, one: Original) -> bytes:
        """Parts of two messages in one frame."""
        other = self.draw.choice(self.originals)
        header = one.header
        key = self.draw.choice(list(other.header))
        header[key] = other.header[key]
        half = self.draw.randrange(len(one.text))
        prefix = PREFIX.pack(b"NATFL", 1, other.code, len(one.text), len(one.body))
        made = (
            one.framed(header, one.body),
            one.framed(one.text, other.body),
            one.framed(other.text, one.body),
            one.framed(one.text[:half] + other.text[half:], one.body),
            one.signed(prefix + one.text + one.body),
            one.signed(one.blob + other.blob),
            one.blob[:-64] + other.blob[-64:],
            one.signed(other.blob[:-64]),
        )
        return self.draw.choice(made)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value of a JSON document stands: its container and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
