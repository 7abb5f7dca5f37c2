"""Row modules of the array, one file per lane kind; `rows.KINDS` is the list of kinds."""

from .rows import KINDS, LATENCY, OTHERS, Row

__all__ = ["KINDS", "LATENCY", "OTHERS", "Row"]
