"""The deliberate bugs of `make mutate` are bugs of the code as it is now."""

from pathlib import Path

import pytest

from .mutations import MUTATIONS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_bug_can_be_applied(mutation):
    raw = (ROOT / mutation.path).read_bytes()
    if isinstance(mutation.old, str):
        assert raw.count(mutation.old.encode()) == 1
    else:
        start, end = mutation.old
        assert 0 <= start < end <= len(raw)
    for test in mutation.tests:
        assert (ROOT / test.split("::")[0]).exists()
