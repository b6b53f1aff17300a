"""Which parameters travel and which stay private: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.sharing.everything import Everything
from forefed.sharing.personal_head import PersonalHead
from forefed.sharing.sharing import Sharing, Split

SHARINGS: Registry[Sharing] = Registry("sharing", [Everything, PersonalHead])
__all__ = ["SHARINGS", "Everything", "PersonalHead", "Sharing", "Split"]
