"""The layers of a plain network under differential privacy, for systems that send what they learn.

Only the parameters that train under noise are sent, so that all that leaves a site is
post-processing; what is public stays as it is (`deep_training` and `dp_training` say how).
"""

from __future__ import annotations

from torch import Tensor, nn

from protocols.chain import RandomBytes
from protocols.errors import ModelError, PrivacyError
from secure_natfl.config import DpSgd
from secure_natfl.deep_training import train_layers, trained_names
from secure_natfl.dp_training import Cohort, Recipe, train_head
from secure_natfl.federation import Site
from secure_natfl.methods.plain_models import Plain
from secure_natfl.systems.private_head import Begin
from secure_natfl.training import features_of


def private_names(model: nn.Module, table: DpSgd) -> tuple[str, ...]:
    """Names, in `model`, of the parameters that train under noise: those alone are sent."""
    return tuple(f"network.{name}" for name in trained_names(_plain(model).network, table.layers))


def train_privately(
    model: nn.Module,
    site: Site,
    table: DpSgd,
    naturals: Tensor,
    begin: Begin | None,
    random: RandomBytes,
    *,
    head_by_features: bool = False,
) -> None:
    """Train `table.layers` of a model on a site's units, on labels alone, under noise; in place.

    naturals: natural images [P, ch, H, W]. `begin` charges; PrivacyError without it, ModelError
    of a network that is not plain.
    head_by_features: train a head alone on features that are worked out once.
    """
    if begin is None:
        raise PrivacyError("training under noise without a charge", where=site.name)
    network, cohort = _plain(model).network, Cohort.of_patients(site.train, site.train_patients)
    features, multi_label = features_of(network.backbone, naturals), site.train.multi_label
    recipe = Recipe(
        rate=table.learning_rate, momentum=0.0, images=table.max_images_per_patient, average=0.0
    )
    if head_by_features and table.layers == "head":
        train_head(network, features, cohort, begin, recipe, multi_label=multi_label, random=random)
        return
    train_layers(
        network,
        table.layers,
        naturals,
        features,
        cohort,
        begin,
        recipe,
        multi_label=multi_label,
        random=random,
    )


def _plain(model: nn.Module) -> Plain:
    if not isinstance(model, Plain):
        raise ModelError("a network without a backbone and one head does not train under noise")
    return model
