"""Program files and tensor layouts: whole, checked, readable differences."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import isa
from terrazzo.arch.files import FileError
from terrazzo.arch.layout import Layout
from terrazzo.arch.program import MAGIC, Layer, Program, image

from .test_accelerator import SMALL


def make_program() -> Program:
    words = np.stack([isa.encode(isa.Instruction(isa.Opcode.END)) for _ in range(2)])
    layout = Layout(positions=3, channels=5, wide=False, stride=1)
    return Program(
        name="tiny",
        accelerator=SMALL,
        setup_entry=0,
        frame_entry=1,
        scratch_bytes=0,
        input=layout,
        output=layout,
        layers=(Layer(tag=1, name="fc", op="linear", macs=15),),
        instructions=words,
        weights=np.arange(37, dtype=np.uint8),
    )


def test_program_file_round_trips(tmp_path):
    program = make_program()
    path = program.save(tmp_path / "tiny.program")
    loaded = Program.load(path)
    assert (loaded.instructions == program.instructions).all() and (loaded.weights == program.weights).all()
    assert loaded.accelerator == SMALL and loaded.layers == program.layers and loaded.input == program.input
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.program"]


def test_damaged_program_files_are_refused(tmp_path):
    path = make_program().save(tmp_path / "tiny.program")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FileError, match="program file must be a whole safetensors file"):
        Program.load(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FileError, match=r"program checksum must be .*; the file is damaged"):
        Program.load(path)
    with pytest.raises(FileError, match="program file must be readable"):
        Program.load(tmp_path / "absent.program")


def test_program_for_another_accelerator_names_the_difference():
    other = dataclasses.replace(SMALL, bus_bytes=8)
    with pytest.raises(FileError, match=r"bus_bytes 16 here, 8 there\. Compile again\.$"):
        make_program().require(other)
    make_program().require(SMALL)


def test_image_starts_with_a_header():
    program = make_program()
    words = image(program)
    assert words[0] == MAGIC and words[4] == 2 and len(words) == 32 * 3
    assert (int(words[3]) << 32 | int(words[2])) == SMALL.hash


@given(st.integers(1, 20), st.integers(1, 40), st.booleans(), st.integers(0, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_layout_unpack_inverts_pack(positions, channels, wide, extra, seed):
    size = 2 if wide else 1
    layout = Layout(
        positions=positions, channels=channels, wide=wide, stride=-(-channels * size // SMALL.depth) + extra
    )
    half = 1 << (8 * size - 1)
    codes = np.random.default_rng(seed).integers(-half, half, (positions, channels))
    rows = layout.pack(SMALL, codes)
    assert rows.shape == (layout.rows(SMALL), SMALL.scratchpad_row_bytes)
    assert (layout.unpack(SMALL, rows) == codes).all()
    position, channel = positions - 1, channels - 1  # by the definition in the docstring
    row = position // SMALL.columns * layout.stride + channel * size // SMALL.depth
    byte = position % SMALL.columns * SMALL.depth + channel * size % SMALL.depth
    assert rows[row, byte] == int(codes[position, channel]) & 255
