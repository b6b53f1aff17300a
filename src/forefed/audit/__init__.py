"""What a server that is curious learns from the messages of a configuration (``forefed audit``)."""

from forefed.audit.audit import Audit, audit
from forefed.audit.finding import Finding
from forefed.config.reveals import reveals

__all__ = ["Audit", "Finding", "audit", "reveals"]
