"""Keys, certificates and the enrolment list: what the parties have before the first start.

A kit is a folder with one folder per party. The consortium's own folder holds the key that signs
lists and the key that signs certificates; it stays off the network. A party that makes its keys
itself hands over its public.json, and no private key travels.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from protocols.chain import SigningKey
from protocols.errors import ConfigError, RunFolderError
from protocols.keyfile import write_private
from protocols.messages import Digest, Name, StrictModel
from protocols.policy import Enrolment, holder_name, threshold_of
from secure_natfl.config import Config
from secure_natfl.deploy.agreement import agreement, public_seeds
from secure_natfl.deploy.enrolled import CONSORTIUM, ENROLLED, Enrolled, NodeKey
from secure_natfl.protection import session_of
from secure_natfl.run_folder import write
from secure_natfl.site_state import secret
from secure_natfl.terms import floors_of
from secure_natfl.toml_config import parse

PUBLIC: Final = "public.json"
NODE_KEY, NODE_PUBLIC = "node.key", "node.pub"
CA, TLS, TLS_KEY = "ca.pem", "tls.pem", "tls.key"
CA_DAYS: Final = 3650
TLS_DAYS: Final = 398
OFFLINE: Final = "consortium"
SERVER_FOLDER: Final = "server"


class Public(StrictModel):
    """What a party hands to the consortium: the public halves of its keys."""

    name: Name
    signing: Digest
    holder: Digest
    node: NodeKey


def party_name(text: str) -> str:
    """A party's name, which its folder has too; ConfigError for what cannot be one."""
    try:
        name: str = TypeAdapter(Name).validate_python(text)
    except ValidationError:
        name = ""
    if not name or name in (SERVER_FOLDER, OFFLINE):
        raise ConfigError(
            f"{text!r} cannot be a party's name",
            where="natfl deploy keys",
            why="it names a folder, and the server and the consortium have theirs",
            fix="letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return name


def own_keys(folder: Path) -> Public:
    """Make a party's keys in its folder, once; their public halves, also in `public.json`.

    The folder is named as the party. Each party runs it on its own machine.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signing, holder = (
        SigningKey(secret(folder, name, os.urandom)).public.hex() for name in ("signing", "holder")
    )
    if not (folder / NODE_KEY).exists():
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write(folder / NODE_PUBLIC, public + b"\n")
        write_private(folder / NODE_KEY, private)
    node = (folder / NODE_PUBLIC).read_text().strip()
    made = Public(name=folder.name, signing=signing, holder=holder, node=node)
    write(folder / PUBLIC, (made.model_dump_json(indent=2) + "\n").encode())
    return made


def read_public(path: Path) -> Public:
    """A party's public.json; ConfigError where it is malformed."""
    try:
        return Public.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            "a party's public keys cannot be read", where=str(path), why=str(error).splitlines()[0]
        ) from None


def make_kit(
    source: Path,
    out: Path,
    hosts: Sequence[str],
    given: Mapping[str, Public],
    holders: Sequence[str] = (),
) -> Enrolled:
    """Make keys for every party that gave none, certificates, and the signed list, everywhere.

    source: the shared configuration, every hospital kind = "remote". hosts: names and addresses by
    which the server is reached. holders: independent key holders; without, the sites hold the keys.
    RunFolderError where a kit has a list already: a new session gets a kit of its own, and takes
    over the parties' public.json.
    """
    if (out / OFFLINE / ENROLLED).exists():
        raise RunFolderError(
            "this kit has an enrolment list",
            where=str(out),
            fix="make a new kit for a new session, with --public for each party that stays",
        )
    text = source.read_text(encoding="utf-8")
    config = parse(tomllib.loads(text), str(source))
    _check(config)
    names = tuple(map(party_name, (*config.site_names(), *holders)))
    _check_names(names, given)
    publics = {name: given.get(name) or own_keys(out / name) for name in names}
    authority, server = out / OFFLINE, out / SERVER_FOLDER
    consortium = SigningKey(secret(authority, "signing", os.urandom))
    _certificates(authority, server, hosts)
    signing = SigningKey(secret(server, "signing", os.urandom))
    made = _list(config, text, signing.public.hex(), publics, holders).signed(consortium)
    for name in (OFFLINE, SERVER_FOLDER, *names):
        folder = out / name
        folder.mkdir(exist_ok=True, mode=0o700)
        write(folder / CONSORTIUM, f"{consortium.public.hex()}\n".encode())
        write(folder / CA, (authority / CA).read_bytes())
        write(folder / ENROLLED, made.model_dump_json(indent=2).encode())
    return made


def _check(config: Config) -> None:
    if config.mode != "ckks/threshold":
        raise ConfigError(
            f"{config.mode} is not played between machines",
            where="aggregation",
            why="only with shared one-time keys can every party be restarted at any moment",
            fix='set aggregation.kind = "ckks", custody = "threshold"',
        )
    if config.seeded:
        raise ConfigError(
            "a deployed federation is never seeded", where="run.seed", fix='set it to "system"'
        )


def _check_names(names: Sequence[str], given: Mapping[str, Public]) -> None:
    """Each party once, and no keys of anybody else: a misspelt name would get new ones."""
    twice = sorted({name for name in names if names.count(name) > 1})
    strange = sorted(set(given) - set(names))
    if twice or strange:
        raise ConfigError(
            f"{', '.join(twice or strange)} {'comes twice' if twice else 'takes no part'}",
            where="natfl deploy keys",
            why="hospitals and holders are told apart by name" if twice else "public.json names it",
            fix="spell every party's name as the configuration or --holder does, once",
        )


def _list(
    config: Config, text: str, server: str, publics: Mapping[str, Public], holders: Sequence[str]
) -> Enrolled:
    nonce = os.urandom(16).hex()
    agreed = agreement(config, public_seeds(nonce))
    clients = {name: publics[name].signing for name in config.site_names()}
    opening = {name: publics[name].signing for name in holders} or {
        holder_name(name): publics[name].holder for name in clients
    }
    threshold, malicious = threshold_of(len(opening))
    enrolment = Enrolment(
        session=session_of(config, agreed.federation, nonce),
        mode=config.mode,
        server=server,
        clients=clients,
        holders=opening,
        threshold=threshold,
        malicious=malicious,
        preset=agreed.terms.preset,
        proxies=agreed.federation.proxy_digest,
        terms=agreed.terms.digest,
        floors=floors_of(config),
    )
    nodes = {name: public.node for name, public in publics.items()}
    return Enrolled(enrolment=enrolment, nonce=nonce, text=text, nodes=nodes)


def _certificates(authority: Path, server: Path, hosts: Sequence[str]) -> None:
    """The consortium's own authority, and the server's certificate under it."""
    for folder in (authority, server):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = datetime.datetime.now(datetime.UTC)
    if not (authority / "ca.key").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        name = _named("secure_natfl consortium")
        ca = (
            _builder(name, name, key, now, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA384())
        )
        write(authority / CA, ca.public_bytes(Encoding.PEM))
        write_private(authority / "ca.key", _pem(key))
    signer = load_pem_private_key((authority / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((authority / CA).read_bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - made above
    # The server's own tools reach it on its own machine.
    names = dict.fromkeys([*hosts, "localhost", "127.0.0.1"])
    certify(server, list(names), signer, issuer, now, TLS_DAYS)


def certify(
    folder: Path,
    hosts: Sequence[str],
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    start: datetime.datetime,
    days: int,
) -> None:
    """Make a server's TLS key and certificate in `folder`, for these names and addresses."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _builder(_named(hosts[0]), issuer.subject, key, start, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(list(map(_alternative, hosts))), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write(folder / TLS, certificate.public_bytes(Encoding.PEM))
    write_private(folder / TLS_KEY, _pem(key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(minutes=5))
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
