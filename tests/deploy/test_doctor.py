"""What the doctor finds in a folder, and that it says what to do next."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocols.errors import ConfigError
from secure_natfl.cli import app
from secure_natfl.deploy.demo import SITES, write_kit
from secure_natfl.deploy.doctor import Check, examine
from secure_natfl.deploy.kit import CA, NODE_KEY, TLS, TLS_KEY, own_keys
from secure_natfl.deploy.launch import address

NAME = SITES[0]


def _keys(folder: Path) -> Check:
    return next(one for one in examine(folder) if one.what == "keys")


def test_a_kits_keys_are_named_as_compared(fresh: Path):
    assert _keys(fresh / NAME).said.startswith(f"signing.key, {NODE_KEY}, holder.key:")
    assert _keys(fresh / "server").said.startswith(f"signing.key, {TLS_KEY}:")
    assert all(_keys(fresh / name).holds for name in (*SITES, "server"))


def test_a_holder_of_its_own_needs_no_second_key(tmp_path: Path):
    bodies = ("notary-1", "notary-2", "notary-3")
    write_kit(tmp_path, rounds=1, images=60, holders=bodies)
    found = _keys(tmp_path / bodies[0])
    assert found.holds, found.said
    assert "holder.key" not in _keys(tmp_path / NAME).said


def _of_another(folder: Path, name: str) -> None:
    other = own_keys(folder.parent / "another" / folder.name)
    assert other.name == folder.name
    (folder / name).write_bytes((folder.parent / "another" / folder.name / name).read_bytes())


def _missing(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _damaged(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"no key")


@pytest.mark.parametrize("name", ["signing.key", "holder.key", NODE_KEY])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_of_another, "the others have another public half of {}"),
        (_missing, "{} is missing: put back"),
        (_damaged, "{} is no private key"),
    ],
)
def test_a_key_that_the_others_do_not_know_is_found(
    wrong: Callable[[Path, str], None], said: str, name: str, fresh: Path
):
    wrong(fresh / NAME, name)
    found = _keys(fresh / NAME)
    assert not found.holds
    assert said.format(name) in found.said


def test_a_certificate_of_another_key_is_found(fresh: Path, tmp_path: Path):
    write_kit(tmp_path / "other", rounds=1, images=60)
    for name in (TLS_KEY, TLS):
        (fresh / "server" / name).write_bytes((tmp_path / "other" / "server" / name).read_bytes())
        assert _keys(fresh / "server").holds == (name == TLS)


def test_a_folder_of_nobodys_name_is_found(fresh: Path):
    (fresh / NAME).rename(fresh / "west")
    assert "the list has no party west" in _keys(fresh / "west").said


@pytest.mark.parametrize("server", ["host", "host:", ":8443", "host:port", "host:99999", "host:-1"])
def test_what_is_no_address_is_said_to_be_none(server: str, fresh: Path):
    *_, found = examine(fresh / "server", server)
    assert (found.what, found.holds) == ("server", False)
    assert "give host:port" in found.said
    done = CliRunner().invoke(app, ["deploy", "client", str(fresh / NAME), "--server", server])
    assert isinstance(done.exception, ConfigError)
    assert not (fresh / NAME / "processes.json").exists()


def test_an_address_may_be_of_either_kind():
    assert address("fl.example.org:8443") == ("fl.example.org", 8443)
    assert address("[::1]:8443") == ("[::1]", 8443)


def test_a_server_that_is_not_there_is_asked_after(fresh: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound and never listening: nobody else gets the port, and a connection is refused.
        *_, found = examine(fresh / "server", f"127.0.0.1:{taken.getsockname()[1]}")
    assert not found.holds
    assert os.strerror(111) in found.said
    assert "ask its operator" in found.said
    (fresh / "server" / CA).unlink()
    *_, found = examine(fresh / "server", "127.0.0.1:1")
    assert f"there is no {CA}: ask the consortium" in found.said
