"""Add up the JUnit files of a test run: which tests failed, and a last line that says how many passed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

LONGEST = 300


def count(directory: Path) -> tuple[dict[str, int], list[str]]:
    """Return the numbers of passed, failed and skipped tests, and a line for each that failed: its name and why."""
    numbers, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
    for file in sorted(directory.glob("*.xml")):
        for case in ElementTree.parse(file).getroot().iter("testcase"):
            found = {child.tag: child for child in case}
            bad = found.get("failure", found.get("error"))
            state = "failed" if bad is not None else "skipped" if "skipped" in found else "passed"
            numbers[state] += 1
            if bad is not None:
                why = " ".join(bad.get("message", "").split())
                failures.append(f"{file.stem}: {case.get('name')}: {why}"[:LONGEST])
    return numbers, failures


if __name__ == "__main__":
    totals, told = count(Path(sys.argv[1]))
    print(*told, ", ".join(f"{number} {state}" for state, number in totals.items()), sep="\n")
    sys.exit(totals["passed"] == 0 or totals["failed"] > 0)
