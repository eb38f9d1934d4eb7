"""What Flower starts at the server: the coordinator, in the folder that the run names."""

from secure_natfl.deploy.flower import app

__all__ = ["app"]
