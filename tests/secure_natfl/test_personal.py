import torch

from secure_natfl.models import Network
from secure_natfl.personal import answering, side_by_side
from secure_natfl.training import Examples, logits_of

PATIENTS = tuple(f"patient-{i // 2}" for i in range(80))


class Means(torch.nn.Module):
    """Features of an image: its first four pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4]


def network(weight: list[list[float]], groups: int = 1) -> Network:
    made = Network(Means(), 4, 2, 3, groups)
    with torch.no_grad():
        made.xray.weight.copy_(torch.tensor(weight))
        made.xray.bias.copy_(torch.arange(len(weight)) / 10)
    return made.eval()


def examples(one_class: bool = False) -> Examples:
    """Images whose first pixel tells the class, behind a little noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(80) if one_class else torch.arange(80).remainder(4).div(2).floor()
    images = torch.rand(80, 1, 2, 2, generator=generator)
    images[:, 0, 0, 0] = 0.7 * labels + 0.3 * images[:, 0, 0, 0]
    targets = torch.stack([1 - labels, labels], 1)
    return Examples(images, targets, torch.ones(80, 2), multi_label=False)


GOOD, BAD = [[-3.0, 0, 0, 0], [3.0, 0, 0, 0]], [[0.0, 0, -2, 0], [0, 0, 2, 0]]


def test_the_mean_of_both_in_the_own_network_s_scale() -> None:
    train, own, central = examples(), network(BAD), network([*BAD, [9.0, 1, 0, 0], [0, 0, 0, 5]], 2)
    joined = side_by_side(own, central, 1, train)
    ours, theirs = logits_of(own, train.images)[:, 0], logits_of(central, train.images)[:, 1]
    moved = theirs - theirs.mean(0)
    margins = [z[:, 1] - z[:, 0] for z in (ours, theirs)]
    ratio = margins[0].std() / margins[1].std()
    expected = (ours + ratio * moved + ours.mean(0)) / 2
    assert torch.allclose(logits_of(joined, train.images)[:, 0], expected, atol=1e-5)
    natural = joined(train.images)[1]
    assert torch.allclose(natural, own(train.images)[1], atol=1e-5)


def test_a_central_model_that_knows_the_images_is_taken_in() -> None:
    train, own, central = examples(), network(BAD), network(GOOD)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    used = answering(own, central, 0, train, PATIENTS)
    assert used is not own
    assert used.features == own.features + central.features
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_one_that_does_not_is_left_out() -> None:
    own = network(GOOD)
    assert answering(own, network(BAD), 0, examples(), PATIENTS) is own


def test_a_site_with_one_class_takes_the_central_model_in() -> None:
    own = network(GOOD)
    assert answering(own, network(BAD), 0, examples(one_class=True), PATIENTS) is not own
