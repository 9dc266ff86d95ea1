"""docs/failures.md says what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/failures.md").read_text()


def test_the_page_of_failures_is_up_to_date() -> None:
    command = [sys.executable, ROOT / "scripts/failures.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_it_has_many_bad_inputs_and_shows_what_is_expected_of_each() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
    messages = [said for given, said in rows if given not in ("given", "---")]
    assert len(messages) >= 40
    assert [said for said in messages if not re.search("expected|is missing", said)] == []
