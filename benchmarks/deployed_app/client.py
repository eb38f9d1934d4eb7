# mypy: disable-error-code="untyped-decorator, import-not-found"
"""The deployment's own relay, and beside it a client of plain FedAvg.

What FedAvg alone needs is imported by it alone, so that a relayed question costs what it costs in
a deployment.
"""

from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from . import relay

app = relay.app


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of AdamW on a site's images."""
    import torch
    from flwr.app import ArrayRecord, MetricRecord

    from benchmarks.round_work import BATCH

    network, images, labels = _loaded(message, context, "train")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for rows in torch.randperm(len(images)).split(BATCH):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
    content = {
        "arrays": ArrayRecord(network.state_dict()),
        "metrics": MetricRecord({"num-examples": len(images)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The share of a site's test images that are right."""
    import torch
    from flwr.app import MetricRecord

    network, images, labels = _loaded(message, context, "test")
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).double().mean()
    found = MetricRecord({"num-examples": len(images), "accuracy": float(right)})
    return Message(RecordDict({"metrics": found}), reply_to=message)


def _loaded(message: Message, context: Context, part: str) -> tuple[Any, Any, Any]:
    """The network as sent, images and labels of this site's part."""
    import numpy as np
    import torch

    from benchmarks.round_work import Network

    with np.load(Path(str(context.node_config["socket"])).with_name("fedavg.npz")) as found:
        images, labels = (
            torch.from_numpy(found[f"{part}_{what}"]) for what in ("images", "labels")
        )
    torch.set_num_threads(1)
    network = Network(classes=2)
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return network, images, labels
