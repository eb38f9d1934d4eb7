import socket
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from protocols.errors import ModelError
from secure_natfl.models import Network, build_backbone, check_architecture
from secure_natfl.pretraining import cache_folder, pretrained
from secure_natfl.training import Naturals


def stored(tmp_path, architecture="test_resnet", without=""):
    """A timm state dict of three-channel images on disk, and its tensors."""
    torch.manual_seed(1)
    state = timm.create_model(architecture, pretrained=False).state_dict()
    state = {k: v for k, v in state.items() if not without or not k.startswith(without)}
    save_file(state, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors"), state


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_backbone_takes_grey_images_and_states_its_features(architecture):
    backbone, features = build_backbone(architecture, 32)
    assert backbone(torch.zeros(3, 1, 32, 32)).shape == (3, features)


def test_a_transformer_of_fixed_input_is_made_for_the_size_in_use():
    backbone, _ = build_backbone("test_vit", 48)
    assert backbone.patch_embed.img_size == (48, 48)
    with pytest.raises(ModelError, match="cannot take grey images of 33×33"):
        build_backbone("test_vit", 33)


def test_two_heads_stand_on_one_backbone():
    backbone, features = build_backbone("test_resnet", 32)
    network = Network(backbone, features, classes=3, natural=10, groups=2)
    xray, natural = network(torch.zeros(4, 1, 32, 32))
    assert (xray.shape, natural.shape) == ((4, 2, 3), (4, 10))
    heads = (features + 1) * (2 * 3 + 10)
    assert network.parameter_count == heads + sum(p.numel() for p in backbone.parameters())


def test_an_unknown_name_gets_the_nearest():
    for check in (check_architecture, lambda name: build_backbone(name, 32)):
        with pytest.raises(ModelError, match=r"test_resnett: .* did you mean 'test_resnet'"):
            check("test_resnett")
    with pytest.raises(ModelError, match="list_models"):
        check_architecture("qqqqqqqqqqqqqqqq")
    check_architecture("test_resnet")


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's on the import path."""
    (tmp_path / "hospital_networks.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 5))\n"
        "def images():\n"
        "    return nn.Identity()\n"
        "def wide(width):\n"
        "    return nn.Linear(width, width)\n"
        "def text():\n"
        "    return 'network'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "hospital_networks"


def test_a_users_own_network_is_taken(own_module):
    check_architecture(f"{own_module}:small")
    backbone, features = build_backbone(f"{own_module}:small", 32)
    assert features == 5
    assert backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("nothing", "cannot be imported"),
        ("number", "is not a factory"),
        ("wide", "cannot be called without an argument"),
        ("text", "gives a str, not a torch module"),
        ("images", r"gives a tensor of shape \(2, 1, 32, 32\)"),
    ],
)
def test_an_own_network_that_cannot_be_used_is_refused(own_module, factory, said):
    with pytest.raises(ModelError, match=f"{own_module}:{factory}: {said}"):
        build_backbone(f"{own_module}:{factory}", 32)


def test_a_module_that_is_not_there_is_refused():
    for name in ("no_such_module:f", ":f", "os:"):
        with pytest.raises(ModelError, match="cannot be imported"):
            check_architecture(name)


def test_weights_of_a_file_are_taken_whole_with_one_channel_for_three(tmp_path):
    file, state = stored(tmp_path)
    loaded = build_backbone("test_resnet", 32, file)[0].state_dict()
    assert loaded.keys() < state.keys()
    for name, tensor in loaded.items():
        # The first convolution answers a grey image as it answers three equal channels.
        expected = state[name].sum(1, keepdim=True) if name == "conv1.0.weight" else state[name]
        assert torch.equal(tensor, expected), name
    assert loaded["conv1.0.weight"].shape[1] == 1


def test_weights_of_another_architecture_are_refused(tmp_path):
    file, _ = stored(tmp_path)
    with pytest.raises(ModelError, match="test_efficientnet: weights cannot be loaded"):
        build_backbone("test_efficientnet", 32, file)


@pytest.mark.parametrize("without", ["layer4", "bn1.running_mean", "conv1.0"])
def test_weights_that_lack_a_part_are_refused_not_completed_at_random(tmp_path, without):
    file, _ = stored(tmp_path, without=without)
    with pytest.raises(ModelError) as refused:
        build_backbone("test_resnet", 32, file)
    assert "\n" not in str(refused.value)
    assert without in str(refused.value) or "cannot be loaded" in str(refused.value)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"PK\x03\x04" * 99)
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"x")
    for weights, said in (
        (str(junk), "cannot be loaded"),
        (str(pickle), "not a .safetensors file"),
        (str(tmp_path / "none.safetensors"), "not a .safetensors file"),
        ("hubb", "not a .safetensors file"),
    ):
        with pytest.raises(ModelError, match=said):
            build_backbone("test_resnet", 32, weights)


def test_without_a_network_the_hub_is_refused_at_once(monkeypatch):
    def offline(*_args, **_kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"hub cannot be reached .*Next: use weights"):
        build_backbone("test_resnet", 32, "hub")
    assert time.perf_counter() - start < 2


@pytest.fixture
def naturals(world):
    both = world.federation.naturals
    return Naturals(both.images[:48], both.labels[:48])


def start(naturals, architecture="test_resnet", size=32, classes=2, epochs=1, weights="none"):
    return pretrained(
        architecture, naturals, size=size, classes=classes, epochs=epochs, weights=weights
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    assert folder.is_relative_to(tmp_path)
    return folder


def learned(network):
    return {k: v for k, v in network.state_dict().items() if not k.startswith("xray.")}


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_cached_start_is_the_same_to_the_last_byte(naturals, cache):
    first = start(naturals)
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    torch.manual_seed(999)
    again = start(naturals)
    assert equal(learned(first), learned(again))
    assert equal(learned(first), load_file(file))
    assert file.stat().st_mtime_ns == before, "it was trained anew"
    file.unlink()
    assert equal(learned(first), learned(start(naturals))), "training is deterministic"


def test_the_cache_is_read_not_only_written(naturals, cache):
    start(naturals)
    (file,) = cache.iterdir()
    marked = load_file(file)
    marked["natural.bias"] = torch.full_like(marked["natural.bias"], 7.0)
    save_file(marked, file)
    assert (start(naturals).natural.bias == 7).all()


def test_a_public_start_has_learned_from_the_images(naturals, cache):
    untrained, trained = start(naturals, epochs=0), start(naturals, epochs=25)
    assert untrained.natural.out_features == int(naturals.labels.max()) + 1
    assert len(list(cache.iterdir())) == 1, "what was not trained is not kept"

    def loss(network):
        with torch.no_grad():
            _, logits = network(naturals.images)
        return float(nn.functional.cross_entropy(logits, naturals.labels))

    assert loss(trained) < loss(untrained) - 0.2


def test_other_inputs_have_another_key(naturals, cache, tmp_path):
    brighter = Naturals(naturals.images + 0.01, naturals.labels)
    turned = Naturals(naturals.images, naturals.labels.flip(0))
    file, _ = stored(tmp_path)
    for count, make in enumerate(
        (
            lambda: start(naturals),
            lambda: start(brighter),
            lambda: start(turned),
            lambda: start(naturals, epochs=2),
            lambda: start(naturals, architecture="test_efficientnet"),
            lambda: start(naturals, weights=file),
        ),
        start=1,
    ):
        make()
        assert len(list(cache.iterdir())) == count
    # The X-ray head is no part of it: another number of classes takes the same file.
    assert start(naturals, classes=5).xray.out_features == 5
    assert len(list(cache.iterdir())) == 6


def test_a_damaged_cache_is_made_anew(naturals, cache):
    first = start(naturals)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert equal(learned(first), learned(start(naturals)))
    assert equal(learned(first), load_file(file))


def test_a_cache_that_cannot_be_made_does_not_stop_a_run(naturals, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert isinstance(start(naturals), Network)


def test_a_full_disk_does_not_stop_a_run_and_leaves_no_part_behind(naturals, cache, full_disk):
    with full_disk():
        network = start(naturals)
    assert isinstance(network, Network)
    assert list(cache.iterdir()) == []


def test_public_training_leaves_torchs_global_stream_alone(naturals, cache):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    start(naturals)
    assert torch.equal(torch.rand(4), expected)


def test_networks_side_by_side_have_the_features_of_all() -> None:
    images = torch.rand(3, 1, 64, 64)
    joined, features = build_backbone("test_resnet+test_byobnet", 64)
    with torch.no_grad():
        parts = [part(images) for part in joined.eval().backbones]
        assert torch.equal(joined(images), torch.cat(parts, 1))
    assert features == sum(part.shape[1] for part in parts) == 96 + 256


def test_an_unknown_network_side_by_side_is_named() -> None:
    with pytest.raises(ModelError, match="test_resnett"):
        check_architecture("test_byobnet+test_resnett")


def test_side_by_side_starts_from_each_network_s_own_pre_training(naturals, cache):
    names = ["test_resnet", "test_byobnet"]
    joined = start(naturals, "+".join(names))
    with torch.no_grad():
        each = [start(naturals, name)(naturals.images[:4])[1] for name in names]
        logits = joined(naturals.images[:4])[1]
    assert torch.allclose(logits, torch.stack(each).mean(0), atol=1e-5)
