"""The two lineages of NatImg-FL, and federations of several findings."""

import inspect
import math
import typing

import numpy as np
import pytest
import torch
from torch import nn

from protocols.errors import NatflError
from secure_natfl.dp_training import Cohort, Recipe
from secure_natfl.federation import Site
from secure_natfl.fine_tuning import fresh
from secure_natfl.heads import ShardBatch
from secure_natfl.systems.natimg_fl import NatImgFL, Returned
from secure_natfl.systems.private_head import PrivateHead
from secure_natfl.systems.speaking import PublicBackbone, Speaking
from tests.secure_natfl.tensors import same, state

# Two lineages


def test_what_is_contributed_does_not_depend_on_personal_models(world):
    """A site's record-play: the same bytes leave it, whatever its personal model is or does."""
    system, site = world.system(), world.sites[1]
    speaking = world.speaking[site.name]
    alone = system.contribute(speaking, world.rows, 1, world.returned())
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    for spoil in (False, True):
        returned = system.returned(central, world.rows, "all")
        system.personalise(personal, site, central, returned, 0)
        if spoil:
            with torch.no_grad():
                for tensor in personal.parameters():
                    tensor.fill_(math.nan)
        torch.manual_seed(int(spoil))
        again = system.contribute(speaking, world.rows, 1, world.returned())
        assert alone.tobytes() == again.tobytes()


def test_a_speaking_network_does_not_depend_on_personal_models_either(world, tiny):
    config = tiny("privacy.mechanism=none")
    site, system = world.sites[0], world.system(config)
    speaking = world.speaking_of(site, config)
    alone = system.contribute(speaking, world.rows, 0, None)
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    returned = system.returned(central, world.rows, "all")
    system.personalise(personal, site, central, returned, 0)
    assert alone.tobytes() == system.contribute(speaking, world.rows, 0, None).tobytes()


def test_personal_and_speaking_models_share_no_memory(world):
    site = world.sites[0]
    backbone = world.speaking[site.name].backbone
    speaks = [*backbone.network.parameters(), *backbone.trunk.parameters()]
    personal = fresh(backbone.network, 2, world.seeds.torch("p"))
    addresses = {tensor.data_ptr() for tensor in personal.parameters()}
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in speaks)


def test_no_type_on_the_way_out_holds_a_personal_model():
    """`Speaking` is public parts and units; the one network in it is the public backbone's."""
    hints = typing.get_type_hints(Speaking)
    assert hints == {
        "site": Site,
        "backbone": PublicBackbone,
        "shards": ShardBatch | None,
        "head": PrivateHead | None,
    }
    for holder in (Speaking, Site, ShardBatch, PrivateHead, Cohort, Recipe, Returned):
        for hint in typing.get_type_hints(holder).values():
            assert not (isinstance(hint, type) and issubclass(hint, nn.Module))
    for step in (NatImgFL.contribute, NatImgFL.speak, NatImgFL.weighted):
        taken = typing.get_type_hints(step).values()
        assert not any(isinstance(hint, type) and issubclass(hint, nn.Module) for hint in taken)
    # A personal model never comes back from where it is trained.
    assert typing.get_type_hints(NatImgFL.personalise)["return"] is float
    assert "central" in inspect.signature(NatImgFL.personalise).parameters


def test_the_speaking_backbone_is_never_trained(world):
    site, system = world.sites[0], world.system()
    before = state(world.speaking[site.name].backbone.network)
    system.contribute(world.speaking[site.name], world.rows, 0, world.returned())
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    system.personalise(personal, site, central, system.returned(central, world.rows, "all"), 0)
    assert same(before, state(world.networks[site.architecture]))


def test_rounds_and_sites_train_apart(world):
    system = world.system()
    one, two = (world.speaking[site.name] for site in (world.sites[0], world.sites[2]))
    assert one.backbone is two.backbone, "one public start per architecture"
    first = system.contribute(one, world.rows, 0, None)
    assert not np.array_equal(first, system.contribute(one, world.rows, 1, None))
    assert not np.array_equal(first, system.contribute(two, world.rows, 0, None))


# Several findings per image


def test_a_federation_of_several_findings_plays_a_round(multi_label):
    world = multi_label
    assert world.federation.task.multi_label
    assert world.federation.unit == "image"
    assert any((site.train.known == 0).any() for site in world.sites)
    system, terms = world.system(), world.agree()
    contributions = {
        name: system.contribute(one, world.rows, 0, None) for name, one in world.speaking.items()
    }
    sums = {
        group: sum(
            terms.alphas[name]
            * terms.mechanisms[name].bound(contributions[name], world.layout()).values
            for name in names
        )
        * terms.mechanisms[names[0]].step
        for group, names in terms.groups.items()
    }
    released = system.read(world.rows, sums, terms.teachers, {"all": 0.0})
    logits = released.logits["all"]
    assert logits.shape == (40, 3)
    # Findings are independent of one another: nothing is centred.
    assert logits.sum(-1).abs().max() > 1e-3
    central = world.network("test_resnet", "central")
    assert math.isfinite(system.absorb(central, released, 0))
    site = world.sites[0]
    personal = world.network(site.architecture, "personal")
    before = state(personal)
    returned = system.returned(central, world.rows, "all")
    assert math.isfinite(system.personalise(personal, site, central, returned, 0))
    assert not same(before, state(personal))
    again = system.contribute(world.speaking[site.name], world.rows, 1, returned)
    assert np.isfinite(again).all()


@pytest.mark.parametrize("family", ["uniform", "entropy", "class"])
def test_several_findings_take_every_beta(multi_label, family):
    config = multi_label.config.model_copy(
        update={"system": multi_label.config.system.model_copy(update={"beta": family})}
    )
    site = multi_label.sites[0]
    found = multi_label.system(config).contribute(
        multi_label.speaking[site.name], multi_label.rows, 0, None
    )
    assert np.isfinite(found).all()
    assert found.shape[1] == multi_label.system(config).layout(40).size


def test_an_unknown_beta_cannot_be_configured(tiny):
    with pytest.raises(NatflError, match=r"system\.beta"):
        tiny("system.beta=oracle")
