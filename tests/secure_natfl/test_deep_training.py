import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import one_hot

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from secure_natfl.deep_training import train_layers, trained_parameters
from secure_natfl.dp_training import Cohort, Recipe
from secure_natfl.models import Network
from secure_natfl.surgery import trainable
from secure_natfl.training import features_of, logits_of

SIDE, CLASSES = 16, 2
RECIPE = Recipe(rate=7.0, momentum=0.0, average=0.0)


class Block(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer)
        nn.init.normal_(self.norm.running_mean, std=0.1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, images):
        return torch.relu(self.norm(self.conv(images)))


def network():
    """Two blocks with public statistics of their own, and a head that knows nothing yet."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        backbone = nn.Sequential(Block(1, 8), Block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        made = Network(backbone, 16, CLASSES, natural=3)
    nn.init.zeros_(made.xray.weight)
    nn.init.zeros_(made.xray.bias)
    return made.eval()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cohort(patients=24):
    """Bright and dark images, one for each patient."""
    labels = torch.arange(patients) % CLASSES
    images = draw(patients, 1, SIDE, SIDE, seed=1) + (2.0 * labels - 1)[:, None, None, None]
    targets = one_hot(labels, CLASSES).float()
    return Cohort((images, targets, torch.ones_like(targets)), torch.arange(patients).split(1))


@pytest.fixture
def trained(tmp_path):
    """Train `layers` under so much noise; gives the network, its plan and the cohort."""

    def run(layers, *, noise=0.05, steps=6):
        plans, some, made = [], cohort(), network()

        def begin(size):
            plan = DpSgd(
                clip_norm=0.15,
                noise_multiplier=noise,
                rate=1.0,
                steps=steps,
                size=size,
                expected=float(len(some)),
            )
            plans.append(plan)
            return plan.begin(ledger, ReleaseKey("session", 0), seeded_random(b"study"))

        with Ledger(
            tmp_path / layers,
            "site",
            "0" * 64,
            relation=ADD_OR_REMOVE_ONE,
            budget_epsilon=None,
            delta=1e-5,
        ) as ledger:
            naturals = draw(80, 1, SIDE, SIDE, seed=2)
            features = features_of(made.backbone, naturals)
            train_layers(made, layers, naturals, features, some, begin, RECIPE, multi_label=False)
        return made, plans[0], some

    return run


def right(made, some):
    said = logits_of(made, some.tensors[0])[:, 0].argmax(-1)
    return float((said == some.tensors[1].argmax(-1)).float().mean())


@pytest.mark.parametrize("layers", ["last", "network"])
def test_thawed_layers_learn_and_no_others(trained, layers):
    made, plan, some = trained(layers)
    assert right(made, some) > 0.9
    assert plan.size == 17 * CLASSES + sum(p.numel() for p in trainable(made.backbone).values())
    start = network().backbone.state_dict()
    for name, parameter in made.backbone.named_parameters():
        moved = not torch.equal(parameter, start[name])
        assert moved == (layers == "network" or name.startswith("1.")), name
    for name, buffer in made.backbone.named_buffers():
        kind = {"mean": "running_mean", "variance": "running_var"}[name.rsplit(".", 1)[1]]
        assert torch.equal(buffer, start[f"{name.rsplit('.', 1)[0]}.{kind}"])


def test_a_deeper_training_pays_for_more_parameters():
    head, last, whole = (
        trained_parameters("test_resnet", 32, CLASSES, layers)
        for layers in ("head", "last", "network")
    )
    backbone = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    assert head == (backbone.num_features + 1) * CLASSES
    assert last == head + sum(p.numel() for p in backbone.layer4.parameters())
    assert whole == head + sum(p.numel() for p in backbone.parameters())


def test_noise_moves_every_layer_by_about_the_same_share_of_itself(trained):
    made, _, some = trained("network", noise=20.0, steps=4)
    start = network().backbone.state_dict()
    shares = [
        float((parameter.detach() - start[name]).norm() / start[name].norm())
        for name, parameter in made.backbone.named_parameters()
        if parameter.dim() == 4
    ]
    assert min(shares) > 0.02
    assert max(shares) < 1.5 * min(shares)
    assert torch.isfinite(logits_of(made, some.tensors[0])).all()
