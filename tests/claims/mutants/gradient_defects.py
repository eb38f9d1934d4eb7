"""Named defects of gradients of single units: of how they are made, of losses, of networks."""

import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from secure_natfl.unit_gradients import RecordLoss, loop

SINGLE = RecordLoss(multi_label=False)


def network(*first):
    """A small network for images [3, 16, 16] that shows the fault of Opacus' unfold2d."""
    made = nn.Sequential(
        *first,
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).train()
    generator = torch.Generator().manual_seed(7)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return made


def halved(network, loss, units):
    """Half of each: a clip would let twice its norm through."""
    return (gradient / 2 for gradient in loop(network, loss, units))


def opacus(network, loss, units):
    """Opacus as it comes: it takes channels-last inputs for contiguous ones."""
    for unit in units:
        wrapped = GradSampleModule(network, loss_reduction="sum", strict=True)
        loss(network, unit).sum().backward()
        yield torch.cat([p.grad_sample.mean(0).reshape(-1) for p in network.parameters()])
        wrapped.cleanup()
        network.zero_grad(set_to_none=True)


def over_the_batch(network, unit):
    """Each image's loss, weighted by the mean of all."""
    each = SINGLE(network, unit)
    return each * each.mean()


def normalised():
    """A network that normalises by the statistics of its batch."""
    return network(nn.BatchNorm2d(3, track_running_stats=False))
