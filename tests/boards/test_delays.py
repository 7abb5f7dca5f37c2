"""Longest paths from nextpnr's delays: a path by hand, ends that are late, carry chains, pins, loops."""

import pytest

from terrazzo.boards.delays import longest_paths

SDF = r"""(DELAYFILE
  (CELL (CELLTYPE "top")
    (INSTANCE )
    (DELAY
      (ABSOLUTE
        (INTERCONNECT one.first/Q two.sum/B (100:1000:2000) (100:1000:2000))
        (INTERCONNECT two.sum/FCO two.high/FCI (0:0:0) (0:0:0))
        (INTERCONNECT two.high/F two.last\$1/DI (0:0:500) (0:0:500))
        (INTERCONNECT one.first/Q two.other/CE (0:0:9000) (0:0:9000))
        (INTERCONNECT pin/O one.first/DI (0:0:90000) (0:0:90000))
        (INTERCONNECT pin/O one.first/CLK (0:0:90000) (0:0:90000))
        (INTERCONNECT one.loop/F one.loop/A (0:0:1) (0:0:1))
      )
    )
  )
  (CELL
    (CELLTYPE "TRELLIS_FF")
    (INSTANCE one.first)
        (IOPATH CLK Q (430:477:525) (430:477:525))
      (SETUPHOLD (posedge DI) (posedge CLK) (0:0:0) (267:285:303))
  )
  (CELL
    (INSTANCE one.loop)
        (IOPATH A F (1:2:3) (1:2:3))
  )
  (CELL
    (INSTANCE two.sum)
        (IOPATH B FCO (1:2:400) (1:2:450))
  )
  (CELL
    (INSTANCE two.high)
        (IOPATH FCI F (1:2:440) (1:2:400))
  )
  (CELL
    (INSTANCE two.last\$1)
        (IOPATH CLK Q (430:477:525) (430:477:525))
      (SETUPHOLD (posedge DI) (posedge CLK) (0:0:100) (267:285:303))
      (SETUPHOLD (negedge DI) (posedge CLK) (0:0:0) (267:285:303))
  )
  (CELL
    (INSTANCE two.other)
      (SETUPHOLD (posedge CE) (posedge CLK) (0:0:0) (144:147:151))
  )
)
"""


def test_a_path_by_hand():
    shorter = SDF.replace("9000", "10")
    (path,) = longest_paths(shorter, 10)
    assert path.ns == pytest.approx(0.525 + 2.0 + 0.45 + 0.44 + 0.5 + 0.1)
    assert path.routing_ns == pytest.approx(2.5) and path.levels == 1
    assert (path.start, path.end, path.late) == ("one.first/Q", "two.last$1/DI", 0)


def test_ends_that_are_late():
    (path,) = longest_paths(SDF, 4)
    assert path.end == "two.other/CE" and path.ns == pytest.approx(9.525) and path.late == 2
    assert longest_paths(SDF, 9.6)[0].late == 0
