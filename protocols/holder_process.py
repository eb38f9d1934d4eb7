"""A key holder's process: `python -m protocols.holder_process FOLDER`.

It speaks frames over standard input and output. First it says its verify key, then it reads the
enrolment, which also tells it what kind of holder it is, then it answers messages until its input
closes. What it answers is the concern of `decrypting` and `share_holder`.
"""

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from protocols.chain import RandomBytes, SigningKey
from protocols.errors import NatflError, ProtocolError, RunFolderError
from protocols.holding import Holding
from protocols.keyfile import signing_key, write_private
from protocols.policy import Enrolment
from protocols.transport import read_frame, write_frame


def serve(folder: Path, inward: IO[bytes], outward: IO[bytes], random: RandomBytes) -> None:
    """Be the key holder until `inward` closes. One process per folder; RunFolderError otherwise."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        _claim(lock, folder)
        key = signing_key(folder / "key", random)
        write_frame(outward, key.public)
        text = read_frame(inward)
        if text is None:
            return
        holder = open_holding(folder, _enrolment(folder / "enrolment.json", text), key)
        while (blob := read_frame(inward)) is not None:
            for message in holder.answer(blob):
                write_frame(outward, message)
        holder.close()


def open_holding(folder: Path, enrolment: Enrolment, key: SigningKey) -> Holding:
    """The holder that this key is enrolled as; ProtocolError for a key that is none's."""
    named = [name for name, public in enrolment.holders.items() if public == key.public.hex()]
    if not named:
        raise ProtocolError("this key is no enrolled key holder's", where=str(folder))
    # TenSEAL is loaded only where its keys are kept.
    if enrolment.mode == "ckks/threshold":
        from protocols.share_holder import ShareHolder

        return ShareHolder(folder, enrolment, named[0], key)
    from protocols.decrypting import Decrypting

    return Decrypting(folder, enrolment, named[0], key)


def _claim(lock: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunFolderError(
            "another key holder is at work here", where=str(folder), fix="end it first"
        ) from error


def _enrolment(path: Path, text: bytes) -> Enrolment:
    """Take the enrolment on the first start; on later ones it must be the same."""
    if path.exists() and path.read_bytes() != text:
        raise RunFolderError(
            "key holder was enrolled for another session",
            where=str(path.parent),
            why="parties, floors or terms differ",
            fix="give a new session a folder of its own",
        )
    try:
        enrolment = Enrolment.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError("enrolment cannot be read", where=str(path), why=str(error)) from error
    if not path.exists():
        write_private(path, text)
    return enrolment


def main() -> int:
    """Run as a process: frames on standard input and output, errors in one line, exit status."""
    # An interrupt reaches the whole terminal; this process ends when its input closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing that a library prints may get between the frames.
    outward = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(Path(sys.argv[1]), sys.stdin.buffer, outward, os.urandom)
    except BrokenPipeError:
        return 0
    except (NatflError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
