import errno
import json

import numpy as np
import pytest
import torch
from torch import nn

from protocols.errors import RunFolderError
from secure_natfl.run_folder import (
    RunFolder,
    load_arrays,
    load_network,
    save_arrays,
    save_network,
    write,
)

TEXT = "# as it was given\n"


@pytest.fixture
def system_seeded(tiny):
    return tiny("run.seed=system")


def start(path, config):
    return RunFolder.open(path, config, TEXT, resume=False)


def test_a_new_folder_says_whose_it_is(tmp_path, system_seeded):
    folder = start(tmp_path / "deep" / "run", system_seeded)
    stated = json.loads((folder.path / "run.json").read_text())
    assert stated == {
        "config_sha256": system_seeded.identity,
        "nonce": folder.nonce,
        "root": folder.seeds.root.hex(),
    }
    assert (folder.path / "config.toml").read_text() == TEXT
    assert not list(folder.path.glob("*.part"))
    assert not folder.seeds.seeded


def test_two_runs_of_one_configuration_are_told_apart_unless_seeded(tmp_path, system_seeded, tiny):
    one, two = (start(tmp_path / name, system_seeded) for name in "ab")
    assert one.nonce != two.nonce
    assert one.seeds.root != two.seeds.root
    three, four = (start(tmp_path / name, tiny("run.seed=4")) for name in "cd")
    assert (three.nonce, three.seeds) == (four.nonce, four.seeds)
    assert three.seeds.seeded
    assert three.nonce != start(tmp_path / "e", tiny("run.seed=5")).nonce


def test_a_run_is_taken_up_again_with_its_nonce_and_randomness(tmp_path, system_seeded, tiny):
    first = start(tmp_path / "run", system_seeded)
    again = RunFolder.open(tmp_path / "run", system_seeded, "other text", resume=True)
    assert (again.nonce, again.seeds) == (first.nonce, first.seeds)
    assert (tmp_path / "run" / "config.toml").read_text() == TEXT
    # What changes only speed may be changed in between.
    quicker = tiny("run.seed=system", "speed.threads=2")
    assert RunFolder.open(tmp_path / "run", quicker, TEXT, resume=True).nonce == first.nonce


def test_a_folder_of_another_configuration_is_refused(tmp_path, system_seeded, tiny):
    start(tmp_path / "run", system_seeded)
    before = (tmp_path / "run" / "run.json").read_bytes()
    for resume in (True, False):
        with pytest.raises(RunFolderError, match=r"another configuration .*choose another --out"):
            RunFolder.open(tmp_path / "run", tiny("run.seed=1"), TEXT, resume=resume)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_an_existing_run_is_not_overwritten(tmp_path, system_seeded):
    start(tmp_path / "run", system_seeded)
    with pytest.raises(RunFolderError, match=r"holds this run already.*add --resume"):
        start(tmp_path / "run", system_seeded)


def test_nothing_is_resumed_where_nothing_was(tmp_path, system_seeded):
    with pytest.raises(RunFolderError, match="no run to resume"):
        RunFolder.open(tmp_path / "run", system_seeded, TEXT, resume=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path, system_seeded):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="other files"):
        start(tmp_path, system_seeded)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    start(tmp_path / "empty", system_seeded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", '{"config_sha256": "x"}', ""])
def test_a_damaged_identity_is_one_clear_line(tmp_path, system_seeded, text):
    start(tmp_path / "run", system_seeded)
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(RunFolderError) as refused:
        RunFolder.open(tmp_path / "run", system_seeded, TEXT, resume=True)
    assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, system_seeded):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match=r"cannot be written .*Next: free space"):
            start(path, system_seeded)


@pytest.fixture
def folder(tmp_path, system_seeded):
    return start(tmp_path / "run", system_seeded)


def test_a_step_appears_whole(folder):
    def fill(part):
        assert not folder.done("round-000")
        (part / "a").write_text("1")
        assert not folder.done("round-000")
        (part / "b").write_text("2")

    folder.finish("round-000", fill)
    assert folder.done("round-000")
    assert {file.name for file in folder.step("round-000").iterdir()} == {"a", "b", "digests.json"}
    assert folder.intact("round-000") == folder.step("round-000")


def test_a_step_that_was_cut_short_does_not_count_and_is_made_anew(folder):
    class Killed(BaseException):
        pass

    def cut_short(part):
        (part / "central").write_text("half of it")
        (part / "left over").write_text("")
        raise Killed

    with pytest.raises(Killed):
        folder.finish("round-001", cut_short)
    assert not folder.done("round-001")
    again = RunFolder(folder.path, folder.nonce, folder.seeds)
    assert not again.done("round-001")
    again.finish("round-001", lambda part: (part / "central").write_text("whole"))
    names = {file.name for file in again.step("round-001").iterdir()}
    assert names == {"central", "digests.json"}
    assert not again.done("round-00")


def test_a_full_disk_is_one_clear_line_and_leaves_no_step(folder, full_disk):
    network = nn.Linear(100, 100)
    fills = (
        lambda part: save_network(network, part / "central.safetensors"),
        lambda part: save_arrays(part / "released.npz", rows=np.arange(5000)),
        lambda part: (part / "summary.json").write_text("x" * 5000),
    )
    for fill in fills:
        with full_disk(), pytest.raises(RunFolderError, match="cannot be written") as refused:
            folder.finish("round-000", fill)
        assert "too large" in str(refused.value)
        assert not folder.done("round-000")
    folder.finish("round-000", fills[0])
    assert folder.done("round-000")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, full_disk):
    write(tmp_path / "report.json", b"old")
    with full_disk(), pytest.raises(OSError, match="too large") as refused:
        write(tmp_path / "report.json", b"n" * 5000)
    assert refused.value.errno == errno.EFBIG
    assert (tmp_path / "report.json").read_bytes() == b"old"
    write(tmp_path / "report.json", b"new")
    assert (tmp_path / "report.json").read_bytes() == b"new"


def test_networks_and_arrays_come_back_as_they_were(world, tmp_path):
    network = world.network("test_efficientnet", "kept", groups=2)
    save_network(network, tmp_path / "n.safetensors")
    other = world.network("test_efficientnet", "another", groups=2)
    load_network(other, tmp_path / "n.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    tensor, rows = torch.randn(4, 2), np.array([3, 1], dtype=np.int64)
    save_arrays(tmp_path / "a.npz", rows=rows, **{"logits:all": tensor})
    found = load_arrays(tmp_path / "a.npz")
    assert set(found) == {"rows", "logits:all"}
    assert found["rows"].dtype == np.int64
    np.testing.assert_array_equal(found["logits:all"], tensor.numpy())


def test_arrays_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", evil=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_arrays(tmp_path / "a.npz")
