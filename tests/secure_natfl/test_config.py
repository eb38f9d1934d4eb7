import tomllib
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from secure_natfl.config import NoNoise, ShardTeachers, sites_of
from secure_natfl.toml_config import ALIASES, load, presets

HOSPITAL = """
[[data.hospitals]]
name = "{name}"
kind = "phantom"
hospital = "county"
images = 40
architectures = ["test_resnet"]
"""
REST = """
[models]
central = "test_resnet"
"""


@pytest.fixture
def refusal(tmp_path):
    """The one line that a text of a configuration, with changes, is refused with."""

    def refuse(text, *changes):
        file = tmp_path / "federation.toml"
        file.write_text(text)
        with pytest.raises(ConfigError) as refused:
            load(str(file), changes)
        line = str(refused.value)
        assert "\n" not in line
        return line

    return refuse


GOOD = HOSPITAL.format(name="county") + REST


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("privacy.epsilonn=3", ("privacy.epsilonn: unknown key", "'epsilon'")),
        ("system.roundss=3", ("system.roundss: unknown key", "'rounds'")),
        ("sistem.rounds=3", ("sistem: unknown key", "'system'")),
        ("data.zzz=3", ("data.zzz: unknown key", "hospitals", "split_seed")),
        ("privacy.mechanism=pate", ("privacy", "pate", "shard-teachers", "dp-sgd")),
        ("aggregation.kind=threshold", ("aggregation", "threshold", "ckks")),
        ("aggregation.kind=slots", ("aggregation: ", "protects nobody", "unsafe = true")),
        ("aggregation.custody=shared", ("aggregation.custody: ", "threshold", "decryptor")),
        ("system.kind=swarm", ("system: ", "swarm", "natimg-fl")),
        ("system.rounds=2.5", ("system.rounds: ", "integer", "2.5")),
        ("system.rounds=0", ("system.rounds: ", "greater than or equal to 1")),
        ("system=3", ("system: ", "got 3")),
        ("privacy.epsilon=0", ("privacy.epsilon: ", "greater than 0")),
        ("privacy.epsilon=-2.0", ("privacy.epsilon: ", "greater than 0")),
        ("privacy.epsilon=nan", ("privacy.epsilon: ", "finite")),
        ("privacy.epsilon=inf", ("privacy.epsilon: ", "finite")),
        ("privacy.delta=1", ("privacy.delta: ", "less than 1")),
        ("privacy.steps=0", ("privacy.steps: ", "greater than or equal to 1")),
        ("data.size=true", ("data.size: ", "integer")),
        ("models.batch=3", ("models.batch: ", "greater than or equal to 4")),
        ("data.hospitals.0.images=3", ("hospitals is a value",)),
        ("nothing", ("--set nothing: not a setting", "--set table.key=value")),
        ("run..seed=1", ("not a setting",)),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_what_is_possible(refusal, change, said):
    line = refusal(GOOD, change)
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("change", "path", "alternatives"),
    [
        ("run.seed=-1", "run.seed: ", ("0", "'system'")),
        ("run.seed=often", "run.seed: ", ("integer", "'system'")),
        ("ledger.budget_epsilon=0", "ledger.budget_epsilon: ", ("greater than 0", "'none'")),
    ],
)
def test_a_value_of_two_types_is_refused_with_both_and_without_pydantics_names(
    refusal, change, path, alternatives
):
    line = refusal(GOOD, change)
    assert path in line
    assert "constrained" not in line
    for part in alternatives:
        assert part in line


def test_a_hospitals_keys_are_those_of_its_kind(refusal):
    line = refusal(GOOD.replace("images = 40", "image = 40"))
    assert "data.hospitals.0.image: unknown key" in line
    assert "did you mean 'images'" in line
    line = refusal(GOOD.replace("images = 40", "images = 40\nfolder = 3"))
    assert "data.hospitals.0.folder: unknown key" in line
    assert "positive_rate" in line
    assert "manifest" not in line  # a key of another kind
    line = refusal(GOOD.replace('hospital = "county"\n', ""))
    assert "data.hospitals.0.hospital: a key is missing" in line
    assert "dicom" in refusal(GOOD.replace('kind = "phantom"', 'kind = "dikom"'))


def test_another_mechanism_keeps_the_keys_that_both_know(tiny):
    before = tiny("privacy.epsilon=2.5", "privacy.max_images_per_patient=2")
    after = tiny(
        "privacy.epsilon=2.5", "privacy.max_images_per_patient=2", "privacy.mechanism=none"
    )
    assert isinstance(before.privacy, ShardTeachers)
    assert isinstance(after.privacy, NoNoise)
    assert (after.privacy.shards, after.privacy.clip) == (5, 20.0)
    assert after.privacy.max_images_per_patient == 2
    assert not hasattr(after.privacy, "epsilon")
    # A key of the old kind alone is refused once the kind has changed.
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: unknown key"):
        tiny("privacy.mechanism=none", "privacy.epsilon=2.5")


def test_another_aggregation_drops_what_it_lacks(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(
        GOOD + '[aggregation]\nkind = "ckks"\ncustody = "decryptor"\nmin_participants = 4\n'
    )
    plain = load(str(file), ["aggregation.kind=plain"]).aggregation
    assert (plain.kind, plain.custody, plain.min_participants) == ("plain", "none", 4)
    ring = load(str(file), ["aggregation.kind=ring"]).aggregation
    assert (ring.kind, ring.custody, ring.min_participants) == ("ring", "decryptor", 4)


def test_a_choice_that_the_new_kind_lacks_is_dropped_too(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(GOOD + '[aggregation]\nkind = "ckks"\ncustody = "threshold"\n')
    assert load(str(file)).mode == "ckks/threshold"
    assert load(str(file), ["aggregation.custody=decryptor"]).mode == "ckks/decryptor"
    assert load(str(file), ["aggregation.kind=ring"]).mode == "ring/decryptor"
    assert load(str(file), ["aggregation.kind=plain"]).mode == "plain/none"
    unsafe = ["aggregation.kind=slots", "aggregation.unsafe=true"]
    assert load(str(file), unsafe).mode == "slots/shared"


def test_a_kind_is_not_set_on_a_value(refusal):
    assert "privacy is a value" in refusal(GOOD, "privacy=3", "privacy.mechanism=none")


def test_a_table_without_its_kind_takes_the_default_one(refusal, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(GOOD + "[privacy]\nepsilon = 3\n[aggregation]\nmin_participants = 5\n")
    config = load(str(file))
    assert (config.privacy.mechanism, config.privacy.epsilon) == ("dp-sgd", 3.0)
    assert (config.aggregation.kind, config.aggregation.min_participants) == ("ckks", 5)


def test_settings_are_read_as_toml_else_as_text(tiny):
    config = tiny("run.seed=7", "run.name=north", 'data.root="a b"', "run.baselines=false")
    assert (config.run.seed, config.run.name, config.data.root) == (7, "north", "a b")
    assert config.run.baselines is False
    assert config.seeded
    assert not tiny("run.seed=system").seeded


def test_a_round_too_many_is_refused_with_the_number_that_works(tiny):
    with pytest.raises(ConfigError, match=r"5 rounds × 40 images .* lower per_round to 24"):
        tiny("system.rounds=5")
    assert tiny("system.rounds=5", "proxies.per_round=24").proxies.per_round == 24
    with pytest.raises(ConfigError, match="lower per_round to 24"):
        tiny("system.rounds=5", "proxies.per_round=25")


def test_more_rounds_than_images_are_not_told_to_ask_none(tiny):
    with pytest.raises(ConfigError, match="lower rounds, or make more images"):
        tiny("system.rounds=121", "proxies.per_round=1")


def test_names_of_hospitals_and_sites_are_unique_and_free(refusal, tmp_path):
    two = HOSPITAL.format(name="north") + HOSPITAL.format(name="north")
    assert "two hospitals have the same name" in refusal(two + REST)
    split = HOSPITAL.format(name="north").replace("images = 40", "images = 40\nsites = 3")
    assert "another's site" in refusal(split + HOSPITAL.format(name="north-2") + REST)
    holder = HOSPITAL.format(name="north") + HOSPITAL.format(name="north.holder")
    assert "another as a key holder" in refusal(holder + REST)
    for taken in ("server", "decryptor"):
        assert "no names" in refusal(HOSPITAL.format(name=taken) + REST)
    file = tmp_path / "fine.toml"
    file.write_text(split + HOSPITAL.format(name="north-4") + REST)
    config = load(str(file))
    assert list(config.site_names()) == ["north-1", "north-2", "north-3", "north-4"]
    assert [sites_of(h) for h in config.data.hospitals][1] == ["north-4"]


def test_every_shipped_preset_parses_and_keeps_its_name():
    assert {"smoke", "xray-hospitals"} <= set(presets())
    for name in presets():
        config = load(name)
        assert config.run.name == name
        assert not config.seeded, "a preset must be private by itself"
        if config.system.kind == "natimg-fl":
            names = {a for h in config.data.hospitals for a in h.architectures}
            assert len(names) >= 3, "a preset shows different architectures"
            assert config.models.central not in names


def test_the_alias_is_the_preset():
    assert ALIASES["natimg-fl-smoke"] == "smoke"
    assert load("natimg-fl-smoke") == load("smoke")


def test_an_unknown_preset_gets_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load("smok")
    with pytest.raises(ConfigError, match=r"presets: .*smoke"):
        load("qqqqqqqq")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path))


def test_a_file_beside_a_preset_of_its_name_is_reached_by_its_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.toml").write_text(GOOD + '[run]\nname = "mine"\n')
    assert load("smoke.toml").run.name == "mine"
    assert load("smoke").run.name == "smoke"


@pytest.mark.parametrize("text", ["[data", "data = ", "a = 1\na = 2", "[data]\n[data]"])
def test_a_fault_of_syntax_gives_its_line(refusal, text):
    line = refusal(text)
    assert "not a TOML file" in line
    assert "line" in line or "end of document" in line


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = Path(tmp_path / "a.toml")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(file))


def test_a_missing_table_is_named(refusal):
    assert "models: a key is missing" in refusal(HOSPITAL.format(name="county"))
    assert "data: a key is missing" in refusal(REST)


def test_what_changes_only_speed_is_no_part_of_a_runs_identity(tiny):
    base = tiny()
    assert tiny("speed.threads=2").identity == base.identity
    changes = ("system.beta=class", "privacy.epsilon=7.9", "run.seed=1", "ledger.folder=x")
    others = {tiny(change).identity for change in changes}
    assert len(others | {base.identity}) == len(changes) + 1
    # The same settings, however written.
    assert tiny("privacy.epsilon=8.0").identity == tiny("privacy.epsilon=8").identity


def test_a_configuration_is_frozen(tiny):
    config = tiny()
    with pytest.raises(ValueError, match="frozen"):
        config.privacy.epsilon = 100.0


def test_presets_are_toml_with_comments():
    for entry in presets().values():
        text = entry.read_text(encoding="utf-8")
        assert text.startswith("#")
        tomllib.loads(text)
