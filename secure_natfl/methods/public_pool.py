"""The unlabelled public images that masked image modelling learns from.

Training images of sites are not among them: what a public start has seen, everybody may read out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secure_natfl.data.arrays import to_float
from secure_natfl.data.npz import PackSource
from secure_natfl.data.overlap import check_overlap
from secure_natfl.federation import Federation
from secure_natfl.system_tables import PublicPack


def public_pool(
    federation: Federation, packs: Sequence[PublicPack], root: str, size: int
) -> Tensor:
    """Images [P, 1, size, size] of the proxies and of further packs below `root`, labels dropped.

    Called once, before any training. DataError where one is (nearly) a site's training image.
    """
    parts = [federation.naturals.images]
    for pack in packs:
        records = PackSource(Path(root) / pack.path).load()
        left_out = [i for i, name in enumerate(records.class_names) if name in pack.without]
        records = records.take(np.flatnonzero(~np.isin(records.labels, left_out)))
        for site in federation.sites:
            check_overlap(records.images, site.records)
        parts.append(torch.from_numpy(to_float(records.images, size)))
    return torch.cat(parts)
