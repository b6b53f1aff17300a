"""Rules that make one update out of many: one file each, one line here."""

from forefed.aggregate.aggregator import Aggregator, PerUnit, Tolerant
from forefed.aggregate.bulyan import Bulyan
from forefed.aggregate.centred_clipping import CentredClipping
from forefed.aggregate.dnc import DivideAndConquer
from forefed.aggregate.fedex import FedEx
from forefed.aggregate.fedkrso import FedKrso
from forefed.aggregate.fedsvd import FedSvd
from forefed.aggregate.flexlora import FlexLora
from forefed.aggregate.flora import Flora
from forefed.aggregate.geometric_median import GeometricMedian
from forefed.aggregate.hetlora import HetLora
from forefed.aggregate.krum import Krum
from forefed.aggregate.mean import Mean
from forefed.aggregate.median import Median
from forefed.aggregate.mud_hog import MudHog
from forefed.aggregate.multi_krum import MultiKrum
from forefed.aggregate.nna import NearestNeighbours
from forefed.aggregate.nnm import NearestMixing
from forefed.aggregate.norm_bound import NormBound
from forefed.aggregate.spectral import Spectral
from forefed.aggregate.trimmed_mean import TrimmedMean
from forefed.core.settings import Registry

AGGREGATORS: Registry[Aggregator] = Registry(
    "aggregator",
    [
        Mean,
        Median,
        TrimmedMean,
        NormBound,
        CentredClipping,
        GeometricMedian,
        Krum,
        MultiKrum,
        Bulyan,
        DivideAndConquer,
        Spectral,
        NearestNeighbours,
        NearestMixing,
        MudHog,
        FedEx,
        Flora,
        FlexLora,
        HetLora,
        FedSvd,
        FedKrso,
    ],
)
__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Bulyan",
    "CentredClipping",
    "DivideAndConquer",
    "FedEx",
    "FedKrso",
    "FedSvd",
    "FlexLora",
    "Flora",
    "GeometricMedian",
    "HetLora",
    "Krum",
    "Mean",
    "Median",
    "MudHog",
    "MultiKrum",
    "NearestMixing",
    "NearestNeighbours",
    "NormBound",
    "PerUnit",
    "Spectral",
    "Tolerant",
    "TrimmedMean",
]
