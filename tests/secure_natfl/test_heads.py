import dataclasses
import hashlib
import hmac
import math

import numpy as np
import pytest
import torch

from secure_natfl.heads import HeadLoss, Knowledge, PublicBatch, ShardBatch
from secure_natfl.seeds import Seeds
from secure_natfl.systems.speaking import (
    HIDDEN,
    assign_shards,
    heads_answer,
    shard_batch,
    shard_capacity,
    train_heads,
)

SEEDS = Seeds.of_study(5)
WHOLE = HeadLoss(natural=1.0, alignment=0.5, distillation=1.0, decay=1e-3)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(world, shards, weights=WHOLE, *, multi_label=False, steps=12, knowledge=True):
    """Heads after training with the whole local loss, and what they say of 40 proxies."""
    backbone = world.speaking[world.sites[0].name].backbone
    classes = shards.targets.shape[2]
    heads = train_heads(
        backbone,
        shards,
        PublicBatch(backbone.features, world.federation.naturals.labels),
        Knowledge(backbone.features[:40], 2 * draw(40, classes)) if knowledge else None,
        weights,
        steps,
        2.0,
        SEEDS.torch("heads"),
        multi_label=multi_label,
    )
    answer = heads_answer(heads, shards, backbone.features[:40], multi_label=multi_label)
    return heads, answer


def other_records(shards, shard, seed=9):
    """The same shards, but everything in one of them is something else, and loud."""
    changed = dataclasses.replace(
        shards,
        features=shards.features.clone(),
        targets=shards.targets.clone(),
        known=shards.known.clone(),
    )
    room, width = shards.features.shape[1:]
    classes = shards.targets.shape[2]
    changed.features[shard] = 30 * draw(room, width, seed=seed)
    changed.targets[shard] = torch.eye(classes)[(torch.arange(room) % 3 > 0).long()]
    changed.known[shard] = 1.0
    return changed


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_head_depends_on_no_other_shard_to_the_last_bit(world, multi_label):
    shards = world.speaking[world.sites[0].name].shards
    count = len(shards.features)
    assert count == 5
    heads, answer = trained(world, shards, multi_label=multi_label)
    for shard in (0, 2, 4):
        changed, other = trained(world, other_records(shards, shard), multi_label=multi_label)
        rest = [i for i in range(count) if i != shard]
        for name, parameter in heads.named_parameters():
            assert torch.equal(parameter[rest], changed.get_parameter(name)[rest]), name
            assert not torch.equal(parameter[shard], changed.get_parameter(name)[shard]), name
        for field in ("xray", "natural", "shares"):
            one, two = getattr(answer, field), getattr(other, field)
            assert torch.equal(one[rest], two[rest])
            assert not torch.equal(one[shard], two[shard])


def test_a_shard_that_diverges_spoils_itself_alone(world):
    shards = world.speaking[world.sites[0].name].shards
    spoiled = other_records(shards, 1)
    spoiled.features[1, 0, 0] = math.nan
    _, answer = trained(world, shards)
    _, other = trained(world, spoiled)
    rest = [0, 2, 3, 4]
    assert torch.equal(answer.xray[rest], other.xray[rest])
    assert other.xray[1].isnan().all()


def test_every_part_of_the_heads_loss_matters(world):
    shards = world.speaking[world.sites[0].name].shards
    _, base = trained(world, shards)
    for part in ("natural", "alignment", "distillation", "decay"):
        _, without = trained(world, shards, dataclasses.replace(WHOLE, **{part: 0.0}))
        assert not torch.equal(base.xray, without.xray), part
    _, unknowing = trained(world, shards, knowledge=False)
    weightless = dataclasses.replace(WHOLE, distillation=0.0)
    assert torch.equal(unknowing.xray, trained(world, shards, weightless)[1].xray)


def test_heads_learn_their_shards_and_remember_the_public_task(world):
    shards = world.speaking[world.sites[0].name].shards
    backbone = world.speaking[world.sites[0].name].backbone
    heads, _ = trained(world, shards, steps=80, knowledge=False)
    with torch.no_grad():
        own = heads.xray(heads.embed(shards.features)).softmax(-1)
        natural = heads.natural(heads.embed(backbone.features)).argmax(-1)
    present = shards.known.sum(-1) > 0
    right = (own.argmax(-1) == shards.targets.argmax(-1))[present]
    assert right.float().mean() > 0.9
    labels = world.federation.naturals.labels
    assert (natural == labels).float().mean() > 0.3, "ten classes, chance is a tenth"


def test_padding_and_unknown_records_leave_no_trace(world):
    shards = world.speaking[world.sites[0].name].shards
    filled = dataclasses.replace(shards, features=shards.features.clone())
    empty = shards.known.sum(-1) == 0
    assert empty.any()
    filled.features[empty] = 50.0
    assert torch.equal(trained(world, shards)[1].xray, trained(world, filled)[1].xray)


def test_heads_start_from_one_public_point(world):
    shards = world.speaking[world.sites[0].name].shards
    _, answer = trained(world, shards, steps=0)
    assert (answer.xray == 0).all()
    assert torch.equal(answer.natural[0], answer.natural[3])
    heads, _ = trained(world, shards, steps=0)
    assert heads.trunk_bias.shape == (5, 1, HIDDEN)
    assert not any(parameter.requires_grad for parameter in heads.parameters())


def test_shares_are_those_of_a_shards_known_labels(world):
    known = torch.zeros(2, 4, 3)
    targets = torch.zeros(2, 4, 3)
    known[0, :3] = 1
    targets[0, 0, 0] = targets[0, 1, 0] = targets[0, 2, 1] = 1
    known[1, 0, 2] = targets[1, 0, 2] = 1
    width = world.speaking[world.sites[0].name].backbone.features.shape[1]
    _, answer = trained(world, ShardBatch(draw(2, 4, width), targets, known), multi_label=True)
    torch.testing.assert_close(answer.shares, torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1]]))


# Which patient goes where


def where(site, shards, key, per_patient=4):
    rows = assign_shards(site, shards, per_patient, key)
    return {site.train_patients[row]: shard for shard in range(shards) for row in rows[shard]}


def test_a_patients_shard_is_a_keyed_hash_of_the_identifier(world):
    site = world.sites[0]
    found = where(site, 5, KEY)
    for patient in set(site.train_patients):
        digest = hmac.new(KEY, patient.encode(), hashlib.sha256).digest()
        assert found[patient] == int.from_bytes(digest[:8], "big") % 5
    assert where(site, 5, OTHER_KEY) != found
    assert where(site, 5, KEY) == found


def test_all_images_of_a_patient_lie_in_one_shard_and_few_of_them(world):
    site = world.sites[0]
    images = [site.train_patients.count(p) for p in set(site.train_patients)]
    assert max(images) >= 3
    for per_patient in (1, 2, 4):
        rows = assign_shards(site, 5, per_patient, KEY)
        used = [site.train_patients[row] for shard in rows for row in shard]
        assert {p: used.count(p) for p in set(used)} == {
            p: min(site.train_patients.count(p), per_patient) for p in set(site.train_patients)
        }
        for shard in rows:
            assert (
                len({row for other in rows if other is not shard for row in other} & {*shard}) == 0
            )
            assert len(shard) == len(set(shard))


def test_the_room_of_a_shard_is_public(world, replaced):
    """Tensor shapes depend on declared figures alone, whatever a patient brings."""
    site = world.sites[0]
    backbone = world.speaking[site.name].backbone
    patient = site.train_patients[0]
    rng = np.random.default_rng(0)
    shapes = set()
    for count in (1, 2, 4, 30):
        images = rng.integers(0, 256, (count, 32, 32), dtype=np.uint8)
        other = replaced(site, patient, images, np.zeros(count, np.int64))
        batch = shard_batch(other, backbone, 5, 4, KEY)
        shapes.add((batch.features.shape, batch.targets.shape, batch.known.shape))
        used = where(other, 5, KEY)
        assert patient in used
    ((features, targets, known),) = shapes
    assert features[:2] == targets[:2] == known[:2] == (5, shard_capacity(site.patients, 5, 4))
    assert shard_capacity(site.patients, 5, 1) * 4 == shard_capacity(site.patients, 5, 4)


def test_a_shard_takes_whole_patients_as_far_as_there_is_room(world, replaced):
    """Where the unit is the image, an id with many near-copies may find no room."""
    site = dataclasses.replace(world.sites[0], unit="image")
    records = site.records
    for patient in sorted(set(site.train_patients)):
        images = np.zeros((4, 32, 32), np.uint8)
        site = replaced(site, patient, images, np.zeros(4, np.int64))
    assert len(site.records) == 4 * records.patient_count
    rows = assign_shards(site, 2, 4, KEY)
    room = shard_capacity(site.patients, 2, 1)
    for shard in rows:
        assert room - 4 < len(shard) <= room, "full, and not beyond"
        counts = [
            [site.train_patients[r] for r in shard].count(p) for p in set(site.train_patients)
        ]
        assert set(counts) <= {0, 4}
    batch = shard_batch(site, world.speaking[site.name].backbone, 2, 4, KEY)
    assert int((batch.known.sum(-1) > 0).sum()) == sum(len(shard) for shard in rows)


def test_an_empty_shard_is_padding_alone(world, only):
    site = only(world.sites[0], [0, 1, 2])
    batch = shard_batch(site, world.speaking[site.name].backbone, 40, 4, KEY)
    filled = (batch.known.sum((1, 2)) > 0).sum()
    assert 1 <= int(filled) <= 3
    assert (batch.features[batch.known.sum((1, 2)) == 0] == 0).all()


# One patient, end to end


def differing(one, other):
    return np.flatnonzero((one != other).any(axis=1)).tolist()


@pytest.mark.parametrize("site_number", [0, 1])
@pytest.mark.parametrize("count", [1, 4])
def test_replacing_one_patient_changes_one_teacher_and_no_other_bit(
    world, terms, replaced, only, site_number, count
):
    """From images to clipped integers, for other images, another label and another number of them.

    15 images: with one more or less, a network that saw them all at once would round differently.
    """
    site = only(world.sites[site_number], range(15))
    system = world.system()
    mechanism = terms.mechanisms[site.name]
    patient = max(sorted(set(site.train_patients)), key=site.train_patients.count)
    rng = np.random.default_rng(count)
    images = rng.integers(0, 2, (count, 32, 32), dtype=np.uint8) * 255
    labels = np.full(count, 1 - site.records.labels[site.train_patients.index(patient)])
    other = replaced(site, patient, images, labels)
    assert other.patients == site.patients
    assert count != site.train_patients.count(patient)

    teachers = [
        system.contribute(world.speaking_of(s), world.rows, 1, world.returned())
        for s in (site, other)
    ]
    shards = len(teachers[0])
    assert shards == min(5, site.patients // 3)
    key = world.seeds.protective(lambda n: b"", "partition", site.name)(32)
    assert differing(*teachers) == [where(site, shards, key)[patient]]

    # Fewer patients, fewer teachers than the plan's: the rest of its teachers say nothing.
    full = [np.zeros((mechanism.shards, mechanism.size)) for _ in teachers]
    for rows, made in zip(full, teachers, strict=True):
        rows[:shards] = made
    sums = [mechanism.bound(rows, world.layout()).values for rows in full]
    distance = math.isqrt(int(((sums[0] - sums[1]) ** 2).sum()))
    assert 0 < distance <= mechanism.sensitivity == 2 * mechanism.clip_int
    # A single clipped answer already has norm S: the bound is of the right size.
    assert distance > 0.02 * mechanism.clip_int


def test_swapping_whole_patients_between_shards_is_not_hidden(world, replaced):
    """The check above can see: two patients replaced in two shards change two teachers."""
    site, system = world.sites[0], world.system()
    key = world.seeds.protective(lambda n: b"", "partition", site.name)(32)
    found = where(site, 5, key)
    pair = [next(p for p in sorted(found) if found[p] == shard) for shard in (0, 3)]
    other = site
    for patient in pair:
        other = replaced(other, patient, np.zeros((1, 32, 32), np.uint8), np.zeros(1, np.int64))
    teachers = [system.contribute(world.speaking_of(s), world.rows, 0, None) for s in (site, other)]
    assert differing(*teachers) == [0, 3]
