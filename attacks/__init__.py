"""Adversaries over a view of the transcript. Never imports `secure_natfl`."""

__version__ = "0.1.0"
