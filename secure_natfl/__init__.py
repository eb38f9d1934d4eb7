"""Privacy-hardened federated learning for medical images over natural images."""

import attacks
import protocols

__version__ = "0.1.0"

for _floor in (protocols, attacks):
    if getattr(_floor, "__version__", None) != __version__:
        raise ImportError(
            f"secure_natfl {__version__} found another `{_floor.__name__}` at {_floor.__file__}: "
            "a different distribution owns that top-level name; install secure_natfl in a virtual "
            "environment of its own"
        )
