import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolError
from protocols.residues import pack, unpack


def packed_by_big_integers(values: list[int], bits: int) -> bytes:
    stream = "".join(format(value, f"0{bits}b") for value in reversed(values))
    return int(stream or "0", 2).to_bytes(len(values) * bits // 8, "little")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_bytes_are_the_bit_stream_and_come_back(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 63))
    count = 8 * data.draw(st.integers(1, 40))
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    body = pack(np.array(values, np.uint64), bits)
    assert body == packed_by_big_integers(values, bits)
    assert unpack(body, bits, (2**bits,))[0].tolist() == values


@pytest.mark.parametrize("bits", range(1, 64))
def test_every_width_at_its_extremes(bits: int) -> None:
    for count in (8, 64, 72, 2048):
        for value in (0, 1, 2**bits - 1):
            values = np.full(count, value, np.uint64)
            body = pack(values, bits)
            assert body == packed_by_big_integers([value] * count, bits)
            assert (unpack(body, bits, (2**bits,)) == value).all()


def test_rows_have_moduli_of_their_own() -> None:
    values = np.array([[6] * 8, [9] * 8], np.uint64)
    body = pack(values, 4)
    assert (unpack(body, 4, (7, 10)) == values).all()
    for moduli in ((6, 10), (7, 9), (10, 7)):
        with pytest.raises(ProtocolError, match="not below its modulus"):
            unpack(body, 4, moduli)


@pytest.mark.parametrize("place", [0, 1, 63, 64, 2047])
def test_one_residue_that_is_not_reduced_is_found(place: int) -> None:
    values = np.full(2048, 100, np.uint64)
    assert unpack(pack(values, 7), 7, (101,)).shape == (1, 2048)
    values[place] = 101
    with pytest.raises(ProtocolError, match="not below its modulus"):
        unpack(pack(values, 7), 7, (101,))
