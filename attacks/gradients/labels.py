"""Labels of a batch from the gradient of the last layer, before any image is guessed.

For mean cross-entropy of logits W·h + b the gradient of b_k is mean p_k − n_k/B: the batch's mean
probability less the share of class k. All functions return int64[B], sorted: a multiset, since a
gradient of a sum knows no order. None of them sees a true label, of this step or of another.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.gradients.analytic import Layer, linear_layers
from attacks.gradients.laboratory import Gradient, Knowledge, Observation

_POINTS = 4  # along the client's way at which its probabilities are guessed


def idlg(observation: Observation) -> Tensor:
    """The label of one image: the one class whose gradient is negative (Zhao et al. 2020)."""
    return _signal(_last(observation)).argmin().view(1)


def yin(observation: Observation) -> Tensor:
    """Distinct labels: the classes whose weight gradients reach lowest (Yin et al. 2021).

    Where the batch is larger than the number of classes, all classes, over and over.
    """
    layer, count = _last(observation), observation.knowledge.images
    order = layer.weight.amin(1).argsort()
    return order.repeat(-(-count // len(order)))[:count].sort().values


def wainakh(observation: Observation) -> Tensor:
    """Labels with repeats from signs and sizes alone (Wainakh et al. 2022, LLG).

    A class with a negative sum of its weight gradients is in the batch. One image of a class moves
    its sum by about the same amount; it is taken off for every image found, and the lowest class
    is the next one.
    """
    layer, count = _last(observation), observation.knowledge.images
    sums = layer.weight.double().sum(1)
    impact = sums[sums < 0].sum() * (1 + 1 / len(sums)) / count
    found = (sums < 0).nonzero().flatten()[sums[sums < 0].argsort()][:count].tolist()
    for label in found:
        sums[label] -= impact
    while len(found) < count:
        label = int(sums.argmin())
        sums[label] -= impact
        found.append(label)
    return torch.tensor(found).sort().values


def bias_corrected(observation: Observation, prior: Tensor) -> Tensor:
    """Labels with repeats: n_k = B·(mean p_k − ∂b_k), p as the network gives it for `prior`.

    prior: the attacker's own images [P, *shape]. After several local steps the probabilities are
    averaged over points between the weights before and after (Dimitrov et al. 2022). Noise of
    known deviation draws the counts to equal shares, as far as it drowns them.
    """
    if _last(observation).bias is None:
        return wainakh(observation)
    return rounded(counted(observation, prior), observation.knowledge.images)


def counted(observation: Observation, prior: Tensor) -> Tensor:
    """The counts [K] behind `bias_corrected`, not rounded; those of `wainakh` without a bias."""
    known, layer = observation.knowledge, _last(observation)
    if layer.bias is None:
        return torch.bincount(wainakh(observation), minlength=known.classes).double()
    probabilities = _probabilities(observation, prior).double()
    counts = known.images * (probabilities - layer.bias.double().to(probabilities))
    return _shrunk(counts, known)


def rounded(counts: Tensor, total: int) -> Tensor:
    """int64[total] labels whose multiset is nearest to real-valued `counts` [K], in L2."""
    left, found = counts.clone(), []
    for _ in range(total):
        label = int(left.argmax())
        left[label] -= 1
        found.append(label)
    return torch.tensor(found).sort().values


def multiset_accuracy(guess: Tensor, truth: Tensor, classes: int) -> float:
    """Share of the labels that are in both multisets. For scoring only."""
    counts = [torch.bincount(labels, minlength=classes) for labels in (guess, truth)]
    return float(torch.minimum(*counts).sum() / len(truth))


def _last(observation: Observation) -> Layer:
    return linear_layers(observation)[-1]


def _signal(layer: Layer) -> Tensor:
    return layer.weight.sum(1) if layer.bias is None else layer.bias


def _shrunk(counts: Tensor, known: Knowledge) -> Tensor:
    """Wiener's estimate of counts of equally likely classes under Gaussian noise."""
    share = 1 / known.classes
    signal, noise = known.images * share * (1 - share), (known.images * known.noise) ** 2
    return known.images * share + signal / (signal + noise) * (counts - known.images * share)


@torch.no_grad()
def _probabilities(observation: Observation, prior: Tensor) -> Tensor:
    """Mean probability [K] of every class along the client's way."""
    known = observation.knowledge
    if known.steps == 1:
        return _at_start(known.network, prior, known.mean, known.deviation)
    found = [
        functional_call(known.network, weights, (known.inputs(prior),)).softmax(-1).mean(0)
        for weights in _points(observation)
    ]
    return torch.stack(found).mean(0)


@lru_cache(maxsize=64)
def _at_start(network: nn.Module, prior: Tensor, mean: float, deviation: float) -> Tensor:
    """The same of the network as it is. Neither it nor the images may change afterwards."""
    found: Tensor = network((prior - mean) / deviation).softmax(-1).mean(0)
    return found


def _points(observation: Observation) -> list[dict[str, Tensor]]:
    known = observation.knowledge
    start = {name: p.detach() for name, p in known.network.named_parameters()}
    gradient: Gradient = observation.gradient or ()
    # The weights with which the steps began, on a straight line.
    shares = torch.linspace(0, (known.steps - 1) / known.steps, min(known.steps, _POINTS))
    way = {n: known.rate * known.steps * g for n, g in zip(start, gradient, strict=True)}
    return [{n: p - share * way[n] for n, p in start.items()} for share in shares]
