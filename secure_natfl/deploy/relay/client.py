"""What Flower starts at a site for each message: it hands the letter to the party's own process.

It has no images, no models and no keys, and imports nothing of this package, so that a process per
message costs little. The socket belongs to the site; what comes back is signed there.
"""

import socket
import struct

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

CHUNK = 1 << 22
_LENGTH = struct.Struct("<I")
_LIMIT = 1 << 28

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator, unused-ignore]
def relay(message: Message, context: Context) -> Message:
    """One question to the party, one answer back."""
    asked = message.content["letter"]
    body = b"".join(asked["chunks"])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(float(asked["deadline"]))
        connection.connect(str(context.node_config["socket"]))
        for part in (str(asked["phase"]).encode(), body):
            connection.sendall(_LENGTH.pack(len(part)) + part)
        found = _read(connection)
    chunks = [found[at : at + CHUNK] for at in range(0, len(found), CHUNK)]
    return Message(RecordDict({"letter": ConfigRecord({"chunks": chunks})}), reply_to=message)


def _read(connection: socket.socket) -> bytes:
    size = _LENGTH.unpack(_exactly(connection, _LENGTH.size))[0]
    if size > _LIMIT:
        raise ValueError("the party's answer is over the limit")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(size - len(found), 1 << 20))
        if not part:
            raise ConnectionResetError("the party's process ended")
        found += part
    return bytes(found)
