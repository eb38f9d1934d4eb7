"""Coverage-guided fuzzing of the envelope: `python covered.py RUNS CORPUS SEED`, needs atheris.

An input is a kind, a split and bytes. It is tried as it is, and as header and body of a message
that the awaited sender signed. Whatever escapes but a ProtocolError ends the process with a trace.
"""

import struct
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["protocols"]):
    from protocols.chain import SigningKey
    from protocols.envelope import authentic, seal
    from protocols.errors import ProtocolError
    from protocols.messages import KINDS

KEY = SigningKey(bytes(32))
PREFIX = struct.Struct("<5sBBII")


def judge(data: bytes) -> None:
    """One input: raw, then framed and signed; what is accepted has one encoding."""
    if len(data) < 4:
        return
    code, split = data[0], int.from_bytes(data[1:4], "little")
    kind, rest = KINDS[code % len(KINDS)], data[4:]
    split %= len(rest) + 1
    prefix = PREFIX.pack(b"NATFL", 1, kind.code, split, len(rest) - split)
    for unsigned in (rest, prefix + rest):
        blob = unsigned + KEY.sign(unsigned)
        try:
            message = authentic(blob, kind, sender="a", verify_key=KEY.public)
        except ProtocolError:
            continue
        if message.sender != "a" or seal(message, KEY) != blob:
            raise AssertionError(f"accepted {blob!r}")


def main(runs: str, corpus: str, seed: str) -> None:
    """Fuzz so many runs from the files in `corpus`; does not return."""
    if not Path(corpus).is_dir():
        raise SystemExit(f"{corpus} is no folder")
    limits = ["-max_len=2048", "-len_control=0", "-reduce_inputs=0", "-rss_limit_mb=1024"]
    options = [sys.argv[0], f"-runs={runs}", f"-seed={seed}", *limits, corpus]
    atheris.Setup(options, judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
