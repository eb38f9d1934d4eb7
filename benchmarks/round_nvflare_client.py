# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call"
"""A client of NVFlare's simulator: what its own examples do, with the common work."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nvflare.client as flare

from benchmarks.round_work import IMAGES, Network, train


def main() -> None:
    """Receive, train an epoch, send, until the server has had enough; note when each began."""
    model, stamps = Network(), Path(sys.argv[1])
    flare.init()
    site = int(flare.get_site_name().rsplit("-", 1)[1]) - 1
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        with (stamps / f"{site}").open("a") as file:
            file.write(f"{time.time()}\n")
        model.load_state_dict(received.params)
        train(model, site)
        meta = {"NUM_STEPS_CURRENT_ROUND": IMAGES}
        flare.send(flare.FLModel(params=model.state_dict(), meta=meta))


if __name__ == "__main__":
    main()
