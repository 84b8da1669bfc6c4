"""The error every data set raises when it cannot be read."""

from __future__ import annotations


class DataError(ValueError):
    """Data that is missing, damaged or not what it should be; the message is one line that names the file."""
