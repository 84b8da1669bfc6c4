"""The internal adapter: which few pretrained weights are trained, and how they are found."""

from sfa_ext.selection.schedule import Schedule
from sfa_ext.selection.search import CRITERIA, SCOPES, Search
from sfa_ext.selection.selection import Entries, Selection

__all__ = ["CRITERIA", "SCOPES", "Entries", "Schedule", "Search", "Selection"]
