"""Each claim of SECURITY.md names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")


def test_each_claim_has_a_test_that_is_there() -> None:
    claims = TEXT.split("## Claims")[1].split("\n## ")[0]
    rows = [row for row in claims.splitlines() if row.startswith("| ") and not row.startswith("| claim")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}::{test}"
