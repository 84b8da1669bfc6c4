"""Vision transformers from timm: building them and naming the sites where a method may act."""

from sfa_ext.backbones.build import BACKBONE_CLASSES, build, fingerprint, load_weights, save_weights
from sfa_ext.backbones.sites import Site, accounted_size, eligible_weights, find_sites, plain_state

__all__ = [
    "BACKBONE_CLASSES",
    "Site",
    "accounted_size",
    "build",
    "eligible_weights",
    "find_sites",
    "fingerprint",
    "load_weights",
    "plain_state",
    "save_weights",
]
