"""Row modules of the array, one file per lane kind; `rows.KINDS` is the list of kinds."""

from .operands import OPERAND_BITS
from .rows import KINDS, LATENCY, OTHERS, Row

__all__ = ["KINDS", "LATENCY", "OPERAND_BITS", "OTHERS", "Row"]
