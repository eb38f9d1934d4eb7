"""The protocol floor: numbers in, bytes out. Nothing here knows of images or networks."""

__version__ = "0.1.0"
