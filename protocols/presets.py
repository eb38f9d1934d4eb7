"""All presets by the name that a plan gives, whatever form of CKKS they are for."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from protocols.errors import ConfigError, PrivacyError
from protocols.messages import IntVector
from protocols.multikey import MULTIKEY_PRESETS, MultiKeyPreset
from protocols.rlwe import PRESETS as PUBLIC_KEY_PRESETS
from protocols.rlwe import Preset
from protocols.slots import SLOTS_PRESETS, SlotsPreset

AnyPreset = Preset | MultiKeyPreset | SlotsPreset
PRESETS: Final[Mapping[str, AnyPreset]] = {
    **PUBLIC_KEY_PRESETS,
    **MULTIKEY_PRESETS,
    **SLOTS_PRESETS,
}


def find_preset(name: str) -> AnyPreset:
    """Look up a preset by the name in a plan; ConfigError where there is none."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}", where="plan", fix=f"choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def check_width(values: IntVector, preset: AnyPreset) -> None:
    """Return if every integer is within ±`preset.value_limit`, else PrivacyError."""
    if np.abs(values).max(initial=0) > preset.value_limit:
        raise PrivacyError(
            "released integers are wider than the preset",
            where=f"preset {preset.name}",
            why=f"the limit is ±{preset.value_limit}",
            fix="give the noise plan and the preset the same number of bits",
        )
