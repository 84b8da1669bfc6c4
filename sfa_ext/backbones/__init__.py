"""Vision transformers from timm: building them and naming the places where a method may act."""

from sfa_ext.backbones.build import (
    BACKBONE_CLASSES,
    build,
    embedded_checkpoint,
    fingerprint,
    load_weights,
    save_weights,
)
from sfa_ext.backbones.places import Grid, Operation, Site
from sfa_ext.backbones.sites import (
    DEFAULT_TARGETS,
    accelerate,
    accounted_size,
    close_sites,
    decelerate,
    eligible_weights,
    find_operations,
    find_sites,
    named_blocks,
    plain_state,
    the_model,
)

__all__ = [
    "BACKBONE_CLASSES",
    "DEFAULT_TARGETS",
    "Grid",
    "Operation",
    "Site",
    "accelerate",
    "accounted_size",
    "build",
    "close_sites",
    "decelerate",
    "eligible_weights",
    "embedded_checkpoint",
    "find_operations",
    "find_sites",
    "fingerprint",
    "load_weights",
    "named_blocks",
    "plain_state",
    "save_weights",
    "the_model",
]
