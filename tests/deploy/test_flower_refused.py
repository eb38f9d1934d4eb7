"""Twelve machines and connections that Flower must not let in, on loopback; takes minutes."""

import datetime
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocols.errors import ConfigError
from secure_natfl.deploy import launch, processes
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.kit import CA, NODE_KEY, TLS, TLS_KEY, _certificates, certify, own_keys

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
PORT, LOCAL = 18453, "127.0.0.1"
ADMITTED = "SuperNode ID"
NOW = datetime.datetime.now(datetime.UTC)


class Listener:
    """A server that keeps what is said to it once its TLS stands; without a folder it has none."""

    def __init__(self, folder: Path | None) -> None:
        self.heard = b""
        self._context = None
        if folder is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(folder / TLS, folder / TLS_KEY)
            self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._server = socket.create_server((LOCAL, 0))
        self.port = self._server.getsockname()[1]
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            with suppress(OSError), plain:
                plain.settimeout(5)
                wrap = self._context.wrap_socket if self._context else None
                with wrap(plain, server_side=True) if wrap else plain as one:
                    self.heard += one.recv(4096)

    def stop(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def link(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kit whose SuperLink runs with TLS; the list's machines are registered."""
    root = tmp_path_factory.mktemp("r") / "k"
    shutil.copytree(kit, root)
    try:
        launch.start_link(root / "server", LOCAL, PORT)
        launch.register(root / "server", LOCAL, PORT)
        yield root
    finally:
        processes.stop(root / "server")


@pytest.fixture(scope="module")
def listeners(link: Path) -> Iterator[dict[str, Listener]]:
    """Servers whose certificate is right, expired, for another name, foreign, or missing."""
    key = load_pem_private_key((link / "consortium" / "ca.key").read_bytes(), None)
    authority = key, x509.load_pem_x509_certificate((link / "consortium" / CA).read_bytes())
    places = {name: link / name for name in ("right", "expired", "another name", "foreign")}
    for place in places.values():
        place.mkdir()
    certify(places["right"], ["localhost"], *authority, NOW, 30)
    certify(places["expired"], ["localhost"], *authority, NOW - datetime.timedelta(days=9), 1)
    certify(places["another name"], ["elsewhere.example"], *authority, NOW, 30)
    _certificates(link / "other", places["foreign"], ["localhost"])
    made = {name: Listener(place) for name, place in places.items()}
    made["without TLS"] = Listener(None)
    yield made
    for one in made.values():
        one.stop()


def _machine(link: Path, name: str) -> Path:
    """A site's folder under another path, so that each SuperNode has one of its own."""
    folder = link / "machines" / name / SITES[0]
    shutil.copytree(link / SITES[0], folder)
    return folder


@pytest.fixture(scope="module")
def said(link: Path, listeners: dict[str, Listener]) -> dict[str, str]:
    """What SuperNodes say; all are started at once and ended when the right one was let in."""
    address, folders = f"localhost:{PORT}", {}

    def start(name: str, server: str, *, plain: bool = False) -> Path:
        folder = folders[name] = _machine(link, name)
        return_to = PORT + 10 + len(folders)
        if name == "no key":
            transport = ["--root-certificates", str(folder / CA), "--superlink", server]
            tool = launch._tool("flower-supernode")
            launch._start(folder, "supernode", [tool, *transport, "--port", str(return_to)])
            return folder
        if name == "unregistered key":
            own_keys(folder.parent / "stranger")
            shutil.copyfile(folder.parent / "stranger" / NODE_KEY, folder / NODE_KEY)
        if name == "foreign root":
            shutil.copyfile(link / "other" / CA, folder / CA)
        launch.start_node(folder, server, return_to, insecure=plain)
        return folder

    try:
        for name in ("no key", "unregistered key", "foreign root"):
            start(name, address)
        start("plaintext to TLS", address, plain=True)
        for name, listener in listeners.items():
            start(name, f"localhost:{listener.port}")
        right = start("registered", address) / "supernode.log"
        until = time.monotonic() + 300
        while time.monotonic() < until and ADMITTED not in right.read_text(errors="replace"):
            time.sleep(0.5)
        time.sleep(10)
        return {n: (f / "supernode.log").read_text(errors="replace") for n, f in folders.items()}
    finally:
        for folder in folders.values():
            processes.stop(folder)


def test_the_registered_machine_is_let_in_and_a_right_certificate_is_taken(said, listeners):
    assert ADMITTED in said["registered"]
    assert listeners["right"].heard


@pytest.mark.parametrize("name", ["no key", "unregistered key", "foreign root", "plaintext to TLS"])
def test_a_machine_that_may_not_is_not_let_in(name, said):
    assert said[name].strip()
    assert ADMITTED not in said[name]


@pytest.mark.parametrize("name", ["expired", "another name", "foreign", "without TLS"])
def test_a_machine_sends_nothing_to_a_server_that_is_not_the_consortiums(name, said, listeners):
    assert said[name].strip()
    assert ADMITTED not in said[name]
    # To a server without TLS a machine begins with a TLS handshake, of which nothing comes.
    assert listeners[name].heard[:1] in ((b"", b"\x16") if name == "without TLS" else (b"",))


def _hello(link: Path, newest: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=str(link / "server" / CA))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    with (
        socket.create_connection((LOCAL, PORT), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.version()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_older_than_1_2_is_not_spoken(link):
    assert _hello(link, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _hello(link, ssl.TLSVersion.TLSv1_1)


def test_http2_without_tls_gets_no_answer_on_the_port_of_tls(link):
    with socket.create_connection((LOCAL, PORT), timeout=20) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        try:
            found = plain.recv(4096)
        except ConnectionError:
            found = b""
    # A TLS alert at most, never an HTTP/2 frame of settings.
    assert found[:1] in (b"", b"\x15")


def test_a_server_without_tls_is_not_started_off_this_machine(link):
    with pytest.raises(ConfigError, match="without TLS"):
        launch.start_link(link / "server", "0.0.0.0", PORT + 1, insecure=True)  # noqa: S104


def test_a_machine_without_tls_is_not_started_towards_another(link):
    with pytest.raises(ConfigError, match="without TLS"):
        launch.start_node(_machine(link, "away"), "192.0.2.1:8443", PORT + 2, insecure=True)
