"""What the guide shows would work: its files are accepted, its commands' options exist."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_natfl.cli import app
from secure_natfl.deploy.agreement import agreement, public_seeds
from secure_natfl.deploy.server_file import read_patience
from secure_natfl.deploy.site_file import read_site_file
from secure_natfl.toml_config import parse

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "deploy.md").read_text("utf-8")
CONSORTIUM, SITE, SERVER = re.findall(r"```toml\n(.+?)```", TEXT, re.DOTALL)


def test_the_files_of_the_guide_are_accepted(tmp_path: Path):
    table = tomllib.loads(CONSORTIUM)
    table["proxies"] |= {"images": 60, "per_round": 30}
    config = parse(table, "guide")
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "server.toml").write_text(SERVER)
    own = read_site_file(tmp_path, "north", config)
    assert own.hospital.name == "north"
    assert read_patience(tmp_path).total == 86400.0
    assert len(agreement(config, public_seeds("0" * 32)).terms.mechanisms) == 3


@pytest.mark.parametrize("name", ["keys", "server", "client", "holder", "doctor"])
def test_the_options_of_the_guide_exist(name: str):
    shown = CliRunner().invoke(app, ["deploy", name, "--help"], terminal_width=200).output
    commands = re.findall(rf"natfl deploy {name} ((?:[^\n]*\\\n)*[^\n]*)", TEXT)
    assert commands
    for option in re.findall(r"--[a-z-]+", " ".join(commands)):
        assert option in shown
