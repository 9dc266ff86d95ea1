"""Add up the JUnit files of a test run and end with one line: what passed, and what failed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def count(directory: Path) -> tuple[int, int, int]:
    """Return the numbers of passed, failed and skipped tests in a directory's JUnit files."""
    passed = failed = skipped = 0
    for file in sorted(directory.glob("*.xml")):
        for suite in ElementTree.parse(file).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skips = int(suite.get("skipped", 0))
            failed += bad
            skipped += skips
            passed += int(suite.get("tests", 0)) - bad - skips
    return passed, failed, skipped


if __name__ == "__main__":
    totals = count(Path(sys.argv[1]))
    print("{} passed, {} failed, {} skipped".format(*totals))
    sys.exit(totals[0] == 0 or totals[1] > 0)
