"""The internal adapter: which few pretrained weights are trained, and how they are found."""

from sfa_ext.selection.overlap import Overlap, overlap
from sfa_ext.selection.schedule import Schedule
from sfa_ext.selection.search import CRITERIA, GRANULARITIES, SCOPES, Search
from sfa_ext.selection.selection import Entries, Selection, position_dtype

__all__ = [
    "CRITERIA",
    "GRANULARITIES",
    "SCOPES",
    "Entries",
    "Overlap",
    "Schedule",
    "Search",
    "Selection",
    "overlap",
    "position_dtype",
]
