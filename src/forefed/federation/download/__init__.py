"""What bytes travel down: the slot ``download``."""

from forefed.core.settings import Registry
from forefed.federation.download.download import DenseDownload, Download, ScalarDownload
from forefed.federation.download.pool import PoolDownload

DOWNLOADS: Registry[Download] = Registry("download", [DenseDownload, ScalarDownload, PoolDownload])
__all__ = ["DOWNLOADS", "DenseDownload", "Download"]
