"""Who talks to whom in a round: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.federation.topology.ring import Ring
from forefed.federation.topology.topology import Central, Topology

TOPOLOGIES: Registry[Topology] = Registry("topology", [Central, Ring])
__all__ = ["TOPOLOGIES", "Central", "Ring", "Topology"]
