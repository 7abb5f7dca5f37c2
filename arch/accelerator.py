"""Accelerator parameters: the one record that compiler, hardware, simulators and drivers read."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import UserError
from .schemes import Scheme, storage_bits

__all__ = ["Accelerator", "AcceleratorError", "Lanes"]

VERSION = 1
"""Of instruction set and registers together; part of the hash."""

PARAM_BYTES = 10
"""One drain parameter record: m u16, n u6 and entry u8 and two spare bits in 16 bits, C s48 (little endian)."""
NORM_BYTES = 8
"""One LayerNorm record: g s16, b s48 (little endian)."""
TABLE_ROW_BYTES = 8
TABLE_PAGE_ENTRIES = 1024
_OPTIONAL = (
    "norm_rows",
    "row_scales",
    "index_rows",
    "table_pages",
    "operand_slots",
    "row_maxima",
    "row_moments",
)
"""Parameters that may be 0: the machine is without that part (`arch.options`)."""


class AcceleratorError(UserError):
    """Parameters that break a relation; the message lists all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """Lanes of each kind in the array. Every kind runs rows of its own scheme; Fixed-8 lanes run any row. Products of two
    activations (attention) run on Fixed-8 lanes, with keys and values of 4 bits on `fixed4_dynamic` ones too. In lane
    order: fixed8, fixed4, pot4, sp2_4, ternary, binary."""

    fixed8: int
    fixed4: int = 0
    pot4: int = 0
    sp2_4: int = 0
    ternary: int = 0
    binary: int = 0
    """Their codes have no zero: layers whose channels or pixels do not fill whole chunks use the other lanes alone."""
    fixed8_luts: int = 0
    """How many of the Fixed-8 lanes, the last ones, do without multipliers; they do the same in the same time."""
    fixed4_quads: int = 0
    """How many of the Fixed-4 lanes, the last ones, multiply in multipliers, four products in each; layers whose operands
    have more than 6 bits use the other lanes alone."""
    fixed4_triples: int = 0
    """How many of the Fixed-4 lanes, in front of `fixed4_quads`, multiply in multipliers with a port of 27 bits, three lanes in
    each: a multiple of 3. They take operands of s8."""
    fixed4_dynamic: int = 0
    """How many of the Fixed-4 lanes, the first ones, take keys and values of 4 bits (-8..7) from the drain; a multiple of
    `drain`. Two codes share a byte of the weight memory, so columns and drain must be even."""

    fixed4_operand_bits: int = 9
    """Signed bits of the operands that the Fixed-4 lanes without multipliers take, 4..9: 9 hold s8 and u8 codes."""
    fixed4_digits: bool = False
    """Whether Fixed-4 lanes take operands of 8 bits as two digits of base 16 too, in twice the time; a digit has 5 bits."""

    @property
    def by_scheme(self) -> dict[Scheme, int]:
        """Lane count of each scheme that has lanes, in lane order."""
        counts = (self.fixed8, self.fixed4, self.pot4, self.sp2_4, self.ternary, self.binary)
        return {scheme: count for scheme, count in zip(Scheme, counts, strict=True) if count}

    @property
    def others(self) -> dict[Scheme, dict[str, int]]:
        """How many lanes of a scheme, its last ones, are of its other kinds, in lane order."""
        fixed4 = {"fixed4_triples": self.fixed4_triples, "fixed4_quads": self.fixed4_quads}
        return {Scheme.FIXED8: {"fixed8_luts": self.fixed8_luts}, Scheme.FIXED4: fixed4}

    @property
    def total(self) -> int:
        """Number of lanes."""
        return sum(self.by_scheme.values())

    @property
    def quads(self) -> range:
        """Lanes with four products in a multiplier."""
        end = self.fixed8 + self.fixed4
        return range(end - self.fixed4_quads, end)

    @property
    def triples(self) -> range:
        """Fixed-4 lanes that share a multiplier by three."""
        return range(self.quads.start - self.fixed4_triples, self.quads.start)

    @property
    def dynamic(self) -> int:
        """Lanes that take keys and values of 4 bits from the drain: the first ones."""
        return self.fixed8 + self.fixed4_dynamic

    @property
    def kinds(self) -> tuple[Scheme, ...]:
        """The kind of each lane."""
        return tuple(scheme for scheme, count in self.by_scheme.items() for _ in range(count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """Parameters of one machine; docs/machine.md says what each memory and width means."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    lanes: Lanes
    columns: int
    """Positions (tokens, pixels) computed side by side; at most `depth`, and of lanes.fixed8 where not a power of two."""
    depth: int
    """Products summed per lane, column and cycle; also the bytes of one scratchpad word; a power of two."""
    drain: int
    """Output channels drained per column and cycle; a power of two, at most depth / 2, divides every lane count."""
    vector: int
    """Elements per column and cycle of the vector engine; a power of two, at most depth / 2."""
    scratchpad_regions: int
    """Scratchpad memories with a read and a write port each; a power of two."""
    scratchpad_rows: int
    """Rows of columns * depth bytes in each scratchpad region; a power of two."""
    weight_rows: int
    """Rows of the weight memory: one row holds depth codes for every lane."""
    param_rows: int
    """Rows of drain parameters: one row holds `drain` records."""
    norm_rows: int
    """Rows of LayerNorm parameters: one row holds `vector` records. 0: there is no LAYERNORM."""
    operand_chunks: int
    """Capacity of the operand buffer in chunks (depth bytes for every column); a power of two."""
    row_scales: int
    """Rows of the softmax row-scale memory: one row holds (m, n) for every column. 0: there is no SOFTMAX."""
    index_rows: int
    """Entries of the index memory, 16 bits each; a multiple of 4. 0: there are no gathers and no COMPACT."""
    table_pages: int
    """Unary tables of 1024 bytes held at once; 0..4."""
    instructions: int
    """Capacity of the instruction memory."""
    bus_bytes: int
    """Width of an AXI4 port's data bus; a power of two, 4..128."""
    burst_beats: int
    """Longest burst; a power of two with burst_beats * bus_bytes <= 4096."""
    ports: int = 1
    """AXI4 ports to DRAM, which move data together; 1, 2 or 4."""
    plain_steps: int = 1
    """Drain steps that are one where outputs are plain, as attention's are: 1 or 2 (docs/machine.md, "Drain"). With 2,
    4 * drain is at most depth and 2 * drain at most lanes.fixed8."""
    private: int = 1
    """Chunks of channels that depthwise windows read at once; a power of two, at most 2 * fixed8 / depth: with as many as
    fixed8 / depth every lane multiplies a channel's pixel, with more two pixels under different taps. 1: there are no
    such windows."""
    operand_slots: int = 3
    """Count registers that an instruction may add to its fields (docs/machine.md, "Operand slots"): 3, or 0 where there are
    no count registers. The compiler needs none."""
    row_maxima: int = 0
    """Rows of the memory of logits' maxima, which the drain takes for softmax: one row holds one for every column. 0: softmax
    reads its logits twice."""
    broadcast_stages: int = 1
    """Registers of an operand on its way to the lanes, 1..8: with two or more, choosing it among private chunks and what prepares it for
    a kind of lane are in different cycles, and the tool may place copies on the way. Each more is a cycle of a MATRIX instruction."""
    tree_stages: int = 1
    """Cycles of the tree in which a lane joins the sums of each 4 or 8 products of its depth, 1..4; with more, fewer additions follow
    each other in a cycle. Each more is a cycle of a MATRIX instruction."""
    drain_stages: int = 1
    """Cycles in which the drain chooses a step's sums among the lanes', 1..4. Each more is a cycle of a MATRIX instruction."""
    row_moments: int = 0
    """Rows of the memory of sums of outputs and of their squares, which the drain takes for LayerNorm: one row holds those of
    every column. 0: LayerNorm reads its input twice."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise AcceleratorError("accelerator parameters are not valid:\n  " + "\n  ".join(problems))

    def _problems(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < (field.name not in _OPTIONAL):
                yield f"{field.name} must be {'0 or more' if field.name in _OPTIONAL else 'positive'}, not {value}"
                return
        powers = "depth drain vector scratchpad_regions scratchpad_rows operand_chunks bus_bytes burst_beats"
        for name in [*powers.split(), "private"]:
            value = getattr(self, name)
            if value & (value - 1):
                yield f"{name} must be a power of two, not {value}"
        if not 4 <= self.depth <= 64:
            yield f"depth must be 4..64, not {self.depth}"
        if not 2 <= self.columns <= self.depth:
            yield f"columns must be 2..depth ({self.depth}), not {self.columns}"
        for name in ("drain", "vector"):
            if getattr(self, name) > self.depth // 2:
                yield f"{name} must be at most depth / 2 ({self.depth // 2}), not {getattr(self, name)}"
        for scheme, count in self.lanes.by_scheme.items():
            if count < 0 or count % self.drain:
                yield f"lanes.{scheme.name.lower()} must be a multiple of drain ({self.drain}), not {count}"
        fixed8 = self.lanes.fixed8
        if self.plain_steps not in (1, 2):
            yield f"plain_steps must be 1 or 2, not {self.plain_steps}"
        elif self.plain_steps == 2 and 2 * self.drain > min(fixed8, self.depth // 2):
            yield f"drain must be at most {min(fixed8, self.depth // 2) // 2} with plain_steps=2, not {self.drain}"
        if fixed8 < max(2, self.columns) or fixed8 & (fixed8 - 1):
            yield f"lanes.fixed8 must be a power of two and at least columns ({self.columns}), not {fixed8}"
        most = 2 * fixed8 // self.depth
        if self.private > 1 and self.private > min(most, 16):
            yield f"private must be at most 2 * fixed8 / depth ({most}) and 16, not {self.private}"
        for name in ("operand_chunks", "scratchpad_rows"):
            if self.private > 1 and getattr(self, name) < 4 * self.private:
                yield f"{name} must be at least 4 * private ({4 * self.private}), not {getattr(self, name)}"
        for name, whole in (("fixed8_luts", fixed8), ("fixed4_quads", self.lanes.fixed4)):
            part = getattr(self.lanes, name)
            if not 0 <= part <= whole or part % 2:
                yield f"lanes.{name} must be even and at most lanes.{name[:6]} ({whole}), not {part}"
        triples, most = self.lanes.fixed4_triples, self.lanes.fixed4 - self.lanes.fixed4_quads
        if triples % 3 or not 0 <= triples <= max(0, most):
            yield (
                f"lanes.fixed4_triples must be a multiple of 3 and at most lanes.fixed4 - lanes.fixed4_quads ({most}), "
                f"not {triples}"
            )
        if not 4 <= self.lanes.fixed4_operand_bits <= 9:
            yield f"lanes.fixed4_operand_bits must be 4..9, not {self.lanes.fixed4_operand_bits}"
        if self.lanes.fixed4_digits and self.lanes.fixed4_operand_bits < 5:
            yield f"lanes.fixed4_operand_bits must be at least 5 with lanes.fixed4_digits, not {self.lanes.fixed4_operand_bits}"
        if self.lanes.binary and self.depth < 8:
            yield f"depth must be at least 8 with lanes.binary ({self.lanes.binary}) above 0, not {self.depth}"
        dynamic = self.lanes.fixed4_dynamic
        if not 0 <= dynamic <= self.lanes.fixed4 or dynamic % self.drain:
            yield (
                f"lanes.fixed4_dynamic must be a multiple of drain ({self.drain}) and at most lanes.fixed4 "
                f"({self.lanes.fixed4}), not {dynamic}"
            )
        if dynamic and (self.columns % 2 or self.drain % 2):
            yield f"columns ({self.columns}) and drain ({self.drain}) must be even with lanes.fixed4_dynamic above 0"
        if self.columns & (self.columns - 1) and fixed8 < self.depth:
            yield f"columns must be a power of two with lanes.fixed8 ({fixed8}) below depth, not {self.columns}"
        if self.columns & (self.columns - 1) and self.private > 1:
            yield f"columns must be a power of two with private ({self.private}) above 1, not {self.columns}"
        if self.lanes.total // self.drain > 255:
            yield f"lanes / drain must be at most 255, not {self.lanes.total // self.drain}"
        if not 4 <= self.bus_bytes <= 128:
            yield f"bus_bytes must be 4..128, not {self.bus_bytes}"
        if self.burst_beats > 256 or self.burst_beats * self.bus_bytes > 4096:
            yield f"burst_beats must be at most {min(256, 4096 // self.bus_bytes)}, not {self.burst_beats}"
        if self.operand_slots not in (0, 3):
            yield f"operand_slots must be 0 or 3, not {self.operand_slots}"
        if not 1 <= self.broadcast_stages <= 8:
            yield f"broadcast_stages must be 1..8, not {self.broadcast_stages}"
        if not 1 <= self.tree_stages <= 4:
            yield f"tree_stages must be 1..4, not {self.tree_stages}"
        if not 1 <= self.drain_stages <= 4:
            yield f"drain_stages must be 1..4, not {self.drain_stages}"
        if self.ports not in (1, 2, 4):
            yield f"ports must be 1, 2 or 4, not {self.ports}"
        if self.row_maxima and not self.row_scales:
            yield f"row_maxima must be 0 with row_scales=0, not {self.row_maxima}"
        if self.row_moments and not self.norm_rows:
            yield f"row_moments must be 0 with norm_rows=0, not {self.row_moments}"
        if self.index_rows % 4:
            yield f"index_rows must be a multiple of 4, not {self.index_rows}"
        limited = "weight_rows param_rows norm_rows row_scales index_rows instructions row_maxima row_moments"
        for name in limited.split():
            if getattr(self, name) > 65536:
                yield f"{name} must be at most 65536, not {getattr(self, name)}"
        if self.scratchpad_regions * self.scratchpad_rows > 65536:
            yield "scratchpad_regions * scratchpad_rows must be at most 65536"
        if self.table_pages > 4:
            yield f"table_pages must be at most 4, not {self.table_pages}"

    @property
    def private_taps(self) -> int:
        """Taps of a depthwise window that a lane multiplies in a cycle."""
        return 2 if self.private > 1 and self.private * self.depth > self.lanes.fixed8 else 1

    @property
    def private_chunks(self) -> int:
        """Chunks of channels whose lanes do so."""
        return self.private // self.private_taps

    @property
    def multipliers(self) -> int:
        """Products per cycle of the matrix engine."""
        return self.lanes.total * self.columns * self.depth

    @property
    def tokens_per_word(self) -> int:
        """Tokens in `depth` slots of keys or values: those of whole tiles; the slots behind them stay empty."""
        return self.depth // self.columns * self.columns

    @property
    def plain_drain(self) -> int:
        """Plain outputs drained per column and cycle."""
        return self.drain * self.plain_steps

    @property
    def moment_steps(self) -> int:
        """Drain steps of a tile, at least, whose row moments can be taken: their columns go to the memory one by one."""
        return max(self.columns, 4)

    @property
    def vector_lanes(self) -> int:
        """Elements per cycle of the vector engine."""
        return self.vector * self.columns

    @property
    def scratchpad_row_bytes(self) -> int:
        """Bytes of a scratchpad row, all columns."""
        return self.columns * self.depth

    @property
    def weight_row_bytes(self) -> int:
        """Bytes of a weight row, all lanes, in lane order."""
        return sum(storage_bits(kind) for kind in self.lanes.kinds) * self.depth // 8

    @property
    def line_bytes(self) -> int:
        """What moves in a cycle: a beat of every port, the lowest bytes on port 0."""
        return self.ports * self.bus_bytes

    @property
    def block_bytes(self) -> int:
        """Lines that one burst of every port moves; a buffer in DRAM takes whole blocks (docs/machine.md, "DRAM")."""
        return self.burst_beats * self.line_bytes

    def beats(self, row_bytes: int) -> int:
        """Lines that a memory row of `row_bytes` occupies in DRAM (each row starts a line)."""
        return -(-row_bytes // self.line_bytes)

    def pitch(self, row_bytes: int) -> int:
        """Bytes from a memory row of `row_bytes` to the next one in DRAM."""
        return self.beats(row_bytes) * self.line_bytes

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Accelerator:
        """The inverse of `to_dict`. Raises AcceleratorError."""
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":
                raise first["ctx"]["error"] from None
            where = ".".join(map(str, first["loc"])) or "record"
            raise AcceleratorError(f"accelerator parameter {where}: {first['msg']}") from None

    @property
    def hash(self) -> int:
        """64 bits that name this machine, in a register of the hardware and in every program for it."""
        text = json.dumps({"version": VERSION, **self.to_dict()}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


_ADAPTER = TypeAdapter(Accelerator)
