import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attacks.image_scores import (
    Lpips,
    identified,
    leakage_over_prior,
    matched,
    nrmse,
    psnr,
    ssim,
)
from protocols.errors import ConfigError, ModelError


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_exact_image_and_one_nan_leave_the_others_alone():
    truth = images(4, 1, 16, 16)
    guess = truth + 0.1
    guess[1] = truth[1]
    guess[2, 0, 3, 3] = torch.nan
    found = psnr(guess, truth)
    assert found[0].item() == pytest.approx(20, abs=1e-4)
    assert found[3].item() == pytest.approx(20, abs=1e-4)
    assert torch.isinf(found[1])
    assert torch.isnan(found[2])
    assert torch.isnan(ssim(guess, truth)).tolist() == [False, False, True, False]
    seen = identified(guess, truth, images(5, 1, 16, 16, seed=9))
    assert torch.isnan(seen).tolist() == [False, False, True, False]


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    metrics = pytest.importorskip("skimage.metrics")
    truth = images(5, channels, 33, 24)
    for guess in (truth + 0.2 * images(5, channels, 33, 24, seed=1), images(5, channels, 33, 24)):
        ours = ssim(guess, truth)
        for number, (a, b) in enumerate(zip(guess.clamp(0, 1), truth, strict=True)):
            theirs = metrics.structural_similarity(
                a.double().numpy(),
                b.double().numpy(),
                data_range=1.0,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            assert ours[number].item() == pytest.approx(theirs, abs=1e-5)


def test_ssim_of_an_image_with_itself_and_of_a_guess_out_of_range():
    truth = images(2, 1, 16, 16).round()
    assert torch.allclose(ssim(truth, truth), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(ssim(5 * truth - 2, truth), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="11×11"):
        ssim(truth[..., :8], truth[..., :8])


def test_nrmse_and_leakage_over_the_prior():
    truth = torch.full((2, 1, 4, 4), 0.5)
    assert nrmse(truth * 1.1, truth).tolist() == pytest.approx([0.1, 0.1])
    over = leakage_over_prior(torch.tensor([0.6, 0.3]), torch.tensor([0.4, 0.0]))
    assert over[0].item() == pytest.approx(0.5)
    assert torch.isnan(over[1])


def test_identification_without_looking_is_right_by_chance():
    pool = images(2000, 1, 4, 4)
    truth, guess = pool[:200], images(200, 1, 4, 4, seed=3)
    hits = [
        identified(guess[i : i + 1], truth[i : i + 1], pool[200 + 9 * i :][:9]) for i in range(200)
    ]
    assert 0.03 < torch.cat(hits).mean().item() < 0.19
    assert identified(truth + 0.01, truth, pool[200:]).mean().item() == 1.0
    # A tie with a lure is no identification.
    assert identified(truth[:1], truth[:1], truth[:1]).item() == 0.0


def test_matching_finds_the_order_and_takes_a_nan_last():
    truth = images(5, 1, 8, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal((truth[order])[matched(truth[order], truth)], truth)
    guess = torch.cat([torch.full_like(truth[:1], torch.nan), truth])
    assert matched(guess, truth).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="guess all"):
        matched(truth[:2], truth)


def test_scores_refuse_shapes_that_would_broadcast():
    with pytest.raises(ConfigError, match=r"\[N, C, H, W\]"):
        psnr(images(2, 1, 16, 16), images(1, 1, 16, 16))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_that_of_its_authors(tmp_path):
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    stages = {name.split(".", 1)[1]: value for name, value in theirs.net.state_dict().items()}
    weights = {f"features.{name}": value.contiguous() for name, value in stages.items()}
    heads = [theirs.lin0, theirs.lin1, theirs.lin2, theirs.lin3, theirs.lin4]
    weights |= {f"lin{i}.weight": head.model[1].weight.data for i, head in enumerate(heads)}
    file = tmp_path / "lpips.safetensors"
    save_file(weights, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    with torch.no_grad():
        expected = theirs(2 * a - 1, 2 * b - 1).flatten()
    assert np.allclose(Lpips(file, sha256)(a, b), expected, atol=1e-6)
    assert Lpips(file, sha256)(a[:, :1], a[:, :1]).tolist() == [0.0, 0.0]
    with pytest.raises(ModelError, match="not the pinned"):
        Lpips(file, "0" * 64)


def test_lpips_needs_its_weights(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        Lpips(tmp_path / "absent.safetensors", "0" * 64)
    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match="not the pinned LPIPS weights"):
        Lpips(file, "0" * 64)
    with pytest.raises(ModelError, match="no LPIPS weights"):
        Lpips(file, hashlib.sha256(file.read_bytes()).hexdigest())
