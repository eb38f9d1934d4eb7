"""What a party keeps on its own disk, so that it is the same party after a restart."""

import os
from pathlib import Path

from protocols.chain import RandomBytes, SigningKey
from protocols.durable import written
from protocols.errors import RunFolderError


def signing_key(path: Path, random: RandomBytes) -> SigningKey:
    """The key in a file that only its owner may read; made from `random` on the first call.

    Each party runs it before it is enrolled. RunFolderError if the file cannot be read or made.
    """
    try:
        if not path.exists():
            write_private(path, SigningKey.generate(random).private_bytes())
        return SigningKey(path.read_bytes())
    except OSError as error:
        raise RunFolderError(
            "signing key cannot be read or made",
            where=str(path),
            why=error.strerror or str(error),
            fix="give this folder's owner the right to read and write it",
        ) from error


def write_private(path: Path, data: bytes) -> None:
    """Make a file for its owner alone: after a crash it is whole, or not there."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with written("private file"):
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
