"""Who talks to whom in a round: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.federation.topology.buffered import Buffered
from forefed.federation.topology.dadao import Dadao
from forefed.federation.topology.gossip import Gossip
from forefed.federation.topology.graphs import GRAPHS
from forefed.federation.topology.topology import Central, Topology

TOPOLOGIES: Registry[Topology] = Registry("topology", [Central, Gossip, Buffered, Dadao])
__all__ = ["GRAPHS", "TOPOLOGIES", "Buffered", "Central", "Dadao", "Gossip", "Topology"]
