import json
import os
import tracemalloc

import pytest

from protocols.chain import GENESIS
from protocols.envelope import seal
from protocols.errors import RunFolderError
from protocols.messages import Contribution, Opening, Refusal, RoundPlan
from protocols.transcript import Transcript


@pytest.fixture
def blobs(world):
    return [
        seal(Refusal(session="study", round=number, attempt=1, sender="a"), world.keys["a"])
        for number in range(5)
    ]


@pytest.fixture
def written(tmp_path, blobs):
    """A folder with four messages, closed."""
    folder = tmp_path / "record"
    with Transcript(folder) as transcript:
        for blob in blobs[:4]:
            transcript.append(blob, "a", ("b", "c"))
    return folder


def test_what_was_appended_is_read_again_after_reopening(written, blobs):
    with Transcript(written) as transcript:
        assert [transcript.read(entry) for entry in transcript.entries] == blobs[:4]
        assert [entry.seq for entry in transcript.entries] == [0, 1, 2, 3]
        assert transcript.entries[0].prev == GENESIS
        assert not transcript.torn
        head = transcript.head
        transcript.verify()
        transcript.append(blobs[4], "b", ())
        assert transcript.entries[4].prev == head


def test_every_changed_byte_of_a_finished_line_is_noticed(written):
    index = written / "index.jsonl"
    good = index.read_bytes()
    last = good.rindex(b"\n", 0, -1) + 1
    for place in range(0, last, 3):
        changed = bytearray(good)
        changed[place] ^= 1
        index.write_bytes(changed)
        with pytest.raises(RunFolderError, match="damaged"):
            Transcript(written)
    index.write_bytes(good)
    Transcript(written).close()


def test_removed_swapped_and_repeated_lines_are_noticed(written):
    index = written / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    for wrong in (lines[1:], [lines[0], *lines[2:]], lines[1::-1], [*lines, lines[3]]):
        index.write_bytes(b"".join(wrong))
        with pytest.raises(RunFolderError, match="does not follow"):
            Transcript(written)


def test_a_last_line_that_lacks_only_its_newline_is_whole(written, blobs):
    index = written / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-1])
    with Transcript(written) as transcript:
        assert not transcript.torn
        transcript.append(blobs[4], "a", ())
    with Transcript(written) as transcript:
        assert [entry.kind for entry in transcript.entries] == ["refusal"] * 5


@pytest.mark.parametrize("cut", [2, 40, 150])
def test_a_torn_last_line_is_kept_flagged_and_written_past(written, blobs, cut):
    index = written / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-cut])
    torn = index.read_bytes()
    with Transcript(written) as transcript:
        assert transcript.torn
        assert [entry.kind for entry in transcript.entries] == ["refusal"] * 3 + ["torn-line"]
        transcript.append(blobs[4], "a", ("b",))
        transcript.verify()
    assert index.read_bytes().startswith(torn)
    with Transcript(written) as transcript:
        assert not transcript.torn
        assert [entry.kind for entry in transcript.entries][3:] == ["torn-line", "refusal"]


def test_a_writer_torn_twice_in_a_row_is_still_read(written, blobs):
    index = written / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-30])
    Transcript(written).close()
    index.write_bytes(index.read_bytes()[:-30])
    with Transcript(written) as transcript:
        assert transcript.torn
        transcript.append(blobs[4], "a", ())
    with Transcript(written) as transcript:
        assert [entry.kind for entry in transcript.entries][3:] == ["torn-line", "refusal"]


def test_a_torn_line_that_was_changed_later_is_noticed(written):
    index = written / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-30])
    Transcript(written).close()
    lines = index.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"a", b"b", 1)
    index.write_bytes(b"".join(lines))
    with pytest.raises(RunFolderError, match="does not follow"):
        Transcript(written)


def test_lines_are_read_from_disk_and_their_chain_is_checked_again(written):
    index = written / "index.jsonl"
    good = index.read_bytes()
    with Transcript(written) as transcript:
        entries = transcript.entries
        assert (len(entries), [entry.round for entry in entries[1:]]) == (4, [1, 2, 3])
        assert [entry.seq for entry in entries.of_round(2)] == [2]
        assert entries[-1] == list(entries)[3]
        with pytest.raises(IndexError):
            entries[4]
        for place in range(0, len(good), 7):
            changed = bytearray(good)
            changed[place] ^= 1
            index.write_bytes(changed)
            with pytest.raises(RunFolderError, match="not as it was written"):
                list(entries)
        index.unlink()
        with pytest.raises(RunFolderError, match="cannot be read"):
            list(entries.of_round(2))


def test_memory_does_not_grow_with_the_messages_of_a_round(tmp_path, world):
    """Ten thousand bytes at most for two thousand lines, which take 0.7 MB on disk."""
    refusal = Refusal(session="study", round=3, attempt=1, sender="a")
    blob = seal(refusal, world.keys["a"])
    with Transcript(tmp_path) as transcript:
        transcript.append(blob, "a", ("b",))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(2000):
                transcript.append(blob, "a", ("b",))
            assert tracemalloc.get_traced_memory()[0] - before < 10_000
        finally:
            tracemalloc.stop()
    with Transcript(tmp_path) as transcript:
        assert sum(1 for _ in transcript.recall(Refusal, 3)) == 1
        assert len(transcript.entries) == 2001


def test_changed_and_missing_blobs_are_noticed(written):
    with Transcript(written) as transcript:
        entry = transcript.entries[2]
        path = written / "messages" / entry.sha256
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(RunFolderError, match="bytes were changed"):
            transcript.verify()
        path.unlink()
        with pytest.raises(RunFolderError, match="cannot be read"):
            transcript.read(entry)


def test_a_line_that_says_another_round_than_its_message_is_noticed(tmp_path, blobs, monkeypatch):
    other = Refusal(session="study", round=9, attempt=1, sender="a")
    with Transcript(tmp_path / "record") as transcript:
        with monkeypatch.context() as patch:
            patch.setattr("protocols.transcript.outline", lambda _: other)
            transcript.append(blobs[0], "a", ())
        with pytest.raises(RunFolderError, match="disagree"):
            transcript.verify()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, written, blobs, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        Transcript(tmp_path / "file")
    with Transcript(written) as transcript:
        monkeypatch.setattr(os, "write", lambda *_: 3)
        with pytest.raises(RunFolderError, match="No space left"):
            transcript.append(blobs[4], "a", ())


def test_coalitions_see_what_their_members_sent_or_received(world):
    world.beside().play(world.plan(groups=world.groups("abc", "def")))
    transcript = world.transcript

    def senders(*coalition):
        return sorted(message.sender for message in transcript.view(coalition).of(Contribution))

    assert senders("a") == ["a"]
    assert senders("a", "e") == ["a", "e"]
    assert senders("server") == senders("network") == senders("decryptor") == list("abcdef")
    assert [o.group for o in transcript.view({"e"}).of(Opening)] == ["g1"]
    assert len(transcript.view({"a", "e"}).of(Opening)) == 2
    assert len(transcript.view({"a"}).of(RoundPlan)) == 1
    assert transcript.view({"nobody"}).entries == ()
    everything = transcript.view({"network"}).entries
    assert [entry.seq for entry in everything] == list(range(len(transcript.entries)))


def test_the_index_is_one_canonical_line_per_message(written):
    lines = (written / "index.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])) == sorted(json.loads(lines[0]))
    assert json.loads(lines[0])["receivers"] == ["b", "c"]
