"""TLS, sockets and commands: what is refused before a letter is read."""

import datetime
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from typer.testing import CliRunner

from protocols.errors import ProtocolError
from protocols.transport import read_frame
from secure_natfl.cli import app
from secure_natfl.deploy import processes
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.doctor import Check, examine
from secure_natfl.deploy.kit import CA, TLS, TLS_KEY, certify, own_keys
from secure_natfl.deploy.loopback import Sockets, ask_socket
from secure_natfl.deploy.party import Absent
from secure_natfl.deploy.serve import listening

NAME = SITES[0]
NOW = datetime.datetime.now(datetime.UTC)


def _authority(root: Path):
    key = load_pem_private_key((root / "consortium" / "ca.key").read_bytes(), None)
    return key, x509.load_pem_x509_certificate((root / "consortium" / CA).read_bytes())


@contextmanager
def _served(folder: Path, *, tls: bool = True) -> Iterator[int]:
    """A server that answers one request with its clock, under the folder's certificate."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / TLS, folder / TLS_KEY)

        def answer() -> None:
            try:
                plain, _ = server.accept()
                with context.wrap_socket(plain, server_side=True) if tls else plain as one:
                    one.recv(4096)
                    clock = datetime.datetime.now(datetime.UTC)
                    date = f"{clock:%a, %d %b %Y %H:%M:%S GMT}"
                    one.sendall(f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\n\r\n".encode())
            except OSError:
                pass

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def _connection(root: Path, port: int) -> Check:
    *_, found = examine(root / "server", f"localhost:{port}")
    assert found.what == "server"
    return found


def test_a_server_with_the_consortiums_certificate_is_taken(kit: Path):
    with _served(kit / "server") as port:
        found = _connection(kit, port)
    assert found.holds, found.said
    assert "clocks agree" in found.said


def test_an_expired_certificate_is_refused(fresh: Path):
    start = NOW - datetime.timedelta(days=10)
    certify(fresh / "server", ["localhost"], *_authority(fresh), start, 1)
    with _served(fresh / "server") as port:
        found = _connection(fresh, port)
    assert not found.holds
    assert "expired" in found.said
    dates = next(one for one in examine(fresh / "server") if one.what == "certificates")
    assert not dates.holds


def test_a_certificate_of_another_authority_is_refused(kit: Path, fresh: Path, tmp_path: Path):
    from secure_natfl.deploy.kit import _certificates

    _certificates(tmp_path / "foreign", tmp_path / "server", ["localhost"])
    with _served(tmp_path / "server") as port:
        found = _connection(fresh, port)
    assert not found.holds
    assert "certificate verify failed" in found.said


def test_a_server_without_tls_is_refused(fresh: Path):
    with _served(fresh / "server", tls=False) as port:
        found = _connection(fresh, port)
    assert not found.holds


def test_a_certificate_for_another_name_is_refused(fresh: Path):
    certify(fresh / "server", ["elsewhere.example"], *_authority(fresh), NOW, 30)
    with _served(fresh / "server") as port:
        assert "certificate verify failed" in _connection(fresh, port).said


def test_keys_that_others_may_read_are_found(fresh: Path):
    (fresh / NAME / "holder.key").chmod(0o644)
    keys = next(one for one in examine(fresh / NAME) if one.what == "keys")
    assert not keys.holds
    assert "holder.key" in keys.said


def test_every_private_key_of_a_kit_is_its_owners_alone(kit: Path):
    found = list(kit.rglob("*.key"))
    assert len(found) == 2 + 2 + 3 * len(SITES)
    assert {file.stat().st_mode & 0o777 for file in found} == {0o600}
    for name in (*SITES, "server"):
        names = {file.name for file in (kit / name).iterdir()}
        assert not names & {"ca.key"}


def test_keys_made_by_a_party_itself_stay_where_they_were_made(kit: Path, tmp_path: Path):
    public = own_keys(tmp_path / "own" / NAME)
    kept = {file.name for file in (tmp_path / "own" / NAME).iterdir()}
    runner = CliRunner()
    source = str(kit / "consortium.toml")
    given = ["--public", str(tmp_path / "own" / NAME / "public.json")]
    done = runner.invoke(app, ["deploy", "keys", source, "--out", str(tmp_path / "kit"), *given])
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "kit" / "server" / "enrolled.json").read_text())
    assert made["enrolment"]["clients"][NAME] == public.signing
    assert not list((tmp_path / "kit" / NAME).glob("*.key"))
    assert kept == {"signing.key", "holder.key", "node.key", "node.pub", "public.json"}


def test_status_and_stop_speak_of_what_was_started_here(fresh: Path):
    runner = CliRunner()
    folder = fresh / NAME
    said = json.loads(runner.invoke(app, ["deploy", "status", str(folder), "--json"]).output)
    assert (said["party"], said["running"], said["refusals"]) == (NAME, {}, 0)
    # A number that now belongs to somebody else is left alone.
    processes.record(folder, "party", 1)
    (folder / "processes.json").write_text('{"party": [1, "0"]}')
    assert "nothing was running" in runner.invoke(app, ["deploy", "stop", str(folder)]).output


def test_a_torn_or_oversized_frame_ends_the_connection_and_not_the_party(tmp_path: Path):
    path = tmp_path / "party.sock"
    with listening(path) as server:
        assert path.stat().st_mode & 0o777 == 0o600

        def answer() -> None:
            plain, _ = server.accept()
            with plain, plain.makefile("rb") as inward, plain.makefile("wb") as outward:
                assert (read_frame(inward), read_frame(inward)) == (b"meet", b"")
                outward.write((1 << 30).to_bytes(4, "little"))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="over the limit"):
            ask_socket(path, "meet", b"", 10)
        thread.join()
    absent = Sockets({"a": tmp_path / "nobody.sock"}).ask({"a": b"", "b": b""}, "meet", 1.0)
    assert all(isinstance(one, Absent) for one in absent.values())


def test_what_was_started_is_ended_with_its_children(tmp_path: Path):
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    for at_once in (False, True):
        leader = os.posix_spawn(
            sys.executable, [sys.executable, "-c", code], os.environ, setsid=True
        )
        processes.record(tmp_path, "party", leader)
        until = time.monotonic() + 20
        while len(_group(leader)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert processes.running(tmp_path) == {"party": leader}
        assert processes.stop(tmp_path, at_once=at_once) == ["party"]
        assert processes.running(tmp_path) == {}
        assert _group(leader) == []


def _group(leader: int) -> list[int]:
    """Processes of a group that are not yet dead."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = file.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(int(file.parent.name))
    return found
