"""The transform that makes sites differ: nothing at strength 0, and its figures at strength 1."""

import torch

from benchmarks.pppml_sites import GAIN, STRENGTHS, THICKNESS, imaged
from secure_natfl.data.arrays import DEVIATION, MEAN


def grey(images: torch.Tensor) -> torch.Tensor:
    return images * DEVIATION + MEAN


def test_strength_0_changes_nothing_and_the_first_site_never_changes() -> None:
    images = torch.rand(2, 1, 24, 24) * 4 - 2
    for site in range(4):
        torch.testing.assert_close(imaged(images, site, 0.0), images)
    for strength in STRENGTHS:
        torch.testing.assert_close(imaged(images, 0, strength), images)
        torch.testing.assert_close(imaged(images, 3, strength), images)


def test_at_strength_1_a_bright_row_spreads_over_as_many_rows_as_slices_were_averaged() -> None:
    images = torch.zeros(1, 1, 48, 48)
    images[:, :, 24] = 0.4
    images = (images - MEAN) / DEVIATION
    for site in (1, 2):
        row = grey(imaged(images, site, 1.0))[0, 0, :, 7]
        torch.testing.assert_close(float(row.sum()), 0.4 * GAIN[site], rtol=1e-4, atol=1e-5)
        assert abs(float((row > 1e-3).sum()) - THICKNESS[site]) <= 1
        torch.testing.assert_close(float(row.max()), 0.4 * GAIN[site] / THICKNESS[site])


def test_grey_values_stay_in_range_and_strengths_lie_in_order() -> None:
    images = torch.rand(1, 1, 24, 24) * 4 - 2
    for site in (1, 2):
        off = [float((imaged(images, site, s) - images).square().mean()) for s in STRENGTHS]
        assert off == sorted(off)
        shown = grey(imaged(images, site, 1.0))
        assert float(shown.min()) >= 0
        assert float(shown.max()) <= 1 + 1e-6
