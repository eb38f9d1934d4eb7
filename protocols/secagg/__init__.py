"""Secure aggregation: one function per topology plays the whole protocol of one round.

All give the same integers and the same SHA-256: what differs is who could have seen more.
"""

from protocols.secagg.decryptor import Decryptor
from protocols.secagg.plain import Plain
from protocols.secagg.ring import Ring
from protocols.secagg.threshold import Threshold
from protocols.secagg.topology import Topology, draft

__all__ = ["Decryptor", "Plain", "Ring", "Threshold", "Topology", "draft"]
