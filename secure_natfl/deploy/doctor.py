"""`natfl deploy doctor`: what would stop a party, found before the first question."""

from __future__ import annotations

import datetime
import email.utils
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from protocols.chain import SigningKey
from protocols.errors import NatflError
from protocols.policy import SERVER, holder_name
from secure_natfl import __version__
from secure_natfl.deploy.enrolled import Enrolled, read_enrolled
from secure_natfl.deploy.kit import CA, NODE_KEY, TLS, TLS_KEY
from secure_natfl.deploy.launch import address
from secure_natfl.deploy.site_file import SITE_FILE, read_site_file

FLOWER_RANGE: Final = ((1, 41), (1, 42))
_LEAST_DISK: Final = 2 << 30
_SOON: Final = datetime.timedelta(days=30)
_SKEW: Final = 2.0
_SOCKET_PATH: Final = 100


class Check(NamedTuple):
    """One thing that was looked at: whether it is as it must be, and what was found."""

    what: str
    holds: bool
    said: str


def examine(folder: Path, server: str = "") -> list[Check]:
    """All checks of a party's folder; with `server` (host:port) those of the connection too."""
    found = [
        _checked("enrolment list", lambda: f"session {read_enrolled(folder).session}, signed"),
        _checked("keys", lambda: _keys(folder)),
        _checked("flower", _flower),
        _checked("certificates", lambda: _certificates(folder)),
        _checked("free disk", lambda: _disk(folder)),
        _checked("folder", lambda: _folder(folder)),
    ]
    if (folder / SITE_FILE).exists():
        found.append(_checked("images and policy", lambda: _images(folder)))
    if server:
        found.append(_checked("server", lambda: _server(folder, server)))
    return found


def _checked(what: str, act: Callable[[], str]) -> Check:
    try:
        return Check(what, True, act())
    except (NatflError, OSError, ValueError, PackageNotFoundError) as error:
        return Check(what, False, str(error))


def _keys(folder: Path) -> str:
    """Every private key is its owner's alone, and the public half is the one that others have."""
    enrolled = read_enrolled(folder)
    for file in sorted(folder.glob("*.key")):
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise ValueError(f"{file.name} may be read by others (mode {mode:o}): chmod 600")
    expected = dict(_expected(enrolled, folder))
    for name, stated in expected.items():
        if not (folder / name).exists():
            raise ValueError(f"{name} is missing: put back the one that was made in this folder")
        if _public(folder / name) != stated:
            raise ValueError(
                f"the others have another public half of {name}: put back the key that was made "
                "with it, or hand the consortium this folder's public.json and take its new list"
            )
    return f"{', '.join(expected)}: their owner's alone, and those that the others know"


def _expected(enrolled: Enrolled, folder: Path) -> Iterator[tuple[str, str]]:
    """Each private key that this party needs, and the public half that the others have of it."""
    enrolment, name = enrolled.enrolment, folder.name
    known = {SERVER: enrolment.server, **enrolment.holders, **enrolment.clients}
    if name not in known:
        raise ValueError(f"the list has no party {name}: a folder is named as its party")
    yield "signing.key", known[name]
    if name == SERVER:
        yield TLS_KEY, _pem(x509.load_pem_x509_certificate((folder / TLS).read_bytes()))
        return
    yield NODE_KEY, enrolled.nodes.get(name, "")
    if holder_name(name) in enrolment.holders:
        yield "holder.key", enrolment.holders[holder_name(name)]


def _public(file: Path) -> str:
    """The public half of a private key, as the list or the certificate has it."""
    data = file.read_bytes()
    try:
        if file.name == TLS_KEY:
            return _pem(load_pem_private_key(data, None))
        if file.name == NODE_KEY:
            key = load_ssh_private_key(data, None).public_key()
            return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return SigningKey(data).public.hex()
    except (NatflError, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{file.name} is no private key ({error}): put it back") from error


def _pem(held: PrivateKeyTypes | x509.Certificate) -> str:
    """The public key of a private key or a certificate, in one form."""
    return held.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _flower() -> str:
    found = version("flwr")
    number = tuple(int(part) for part in found.split(".")[:2])
    low, high = FLOWER_RANGE
    if not low <= number < high:
        raise ValueError(f"flwr {found} was not tested: pip install '.[flower]' in a clone")
    return f"flwr {found}, secure_natfl {__version__}"


def _certificates(folder: Path) -> str:
    now, said = datetime.datetime.now(datetime.UTC), []
    for name in (CA, TLS):
        if (folder / name).exists():
            one = x509.load_pem_x509_certificate((folder / name).read_bytes())
            if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
                raise ValueError(f"{name} is valid until {one.not_valid_after_utc:%Y-%m-%d} only")
            soon = one.not_valid_after_utc - now < _SOON
            said.append(f"{name} until {one.not_valid_after_utc:%Y-%m-%d}{' (soon)' * soon}")
    if not said:
        raise ValueError("there is no certificate: ask the consortium for ca.pem")
    return ", ".join(said)


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        raise ValueError(f"{free >> 20} MiB are free, 2 GiB are asked for")
    return f"{free >> 30} GiB"


def _folder(folder: Path) -> str:
    if len(str(folder.resolve())) > _SOCKET_PATH - 12:
        raise ValueError("its path is too long for a socket: take a shorter one")
    probe = folder / "doctor.part"
    probe.write_bytes(b"")
    probe.unlink()
    return "writable"


def _images(folder: Path) -> str:
    from secure_natfl.deploy.agreement import agreed
    from secure_natfl.deploy.training import SiteTraining

    enrolled = read_enrolled(folder)
    own = read_site_file(folder, folder.name, enrolled.config)
    agreement = agreed(enrolled)
    own.policy.check_terms(folder.name, agreement)
    work = SiteTraining(folder, enrolled.session, own, agreement)
    try:
        spent = work.ledger.spent().epsilon
    finally:
        work.close()
    return (
        f"{work.site.patients} {work.site.unit}s as declared; spent ε = {spent:.4g} of "
        f"{own.policy.max_epsilon:g} before this session"
    )


def _server(folder: Path, server: str) -> str:
    """TLS with the consortium's own authority, then the server's clock."""
    host, port = address(server)
    if not (folder / CA).exists():
        raise ValueError(f"there is no {CA}: ask the consortium for it")
    context = ssl.create_default_context(cafile=str(folder / CA))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    before = time.time()
    try:
        with (
            socket.create_connection((host.strip("[]"), port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as secured,
        ):
            asked = f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            secured.sendall(asked.encode())
            head = secured.recv(4096).decode("ascii", "replace")
            kind = secured.version()
    except ssl.SSLError as error:
        raise ValueError(
            f"{error}: compare {CA} with the consortium, and the name with the server's operator"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{server} does not answer ({error.strerror or error}): ask its operator whether it is "
            "started, and for address, port and firewall"
        ) from error
    dates = [line[5:] for line in head.splitlines() if line.lower().startswith("date:")]
    if not dates:
        return f"{kind}, certificate of the consortium's authority; its clock is not stated"
    theirs = email.utils.parsedate_to_datetime(dates[0].strip()).timestamp()
    # The header counts whole seconds.
    skew = min(abs(theirs + half - before) for half in (0.0, 0.5, 1.0))
    if skew > _SKEW:
        raise ValueError(f"clocks differ by {skew:.0f} s: set them by NTP")
    return f"{kind}, certificate of the consortium's authority, clocks agree"
