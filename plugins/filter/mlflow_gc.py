"""Filters of the role mlflow_gc: what a clean-up has done, in words."""

from __future__ import annotations

from typing import Any

ONE = {"runs": "run", "experiments": "experiment", "logged_models": "logged model", "traces": "trace"}
SHOWN = 20


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def counted(deleted: dict[str, int]) -> str:
    """The counts of a report: 2 runs, 1 experiment, 14 objects of 1.2 MB."""
    things = [
        f"{deleted[kind]} {one if deleted[kind] == 1 else kind.replace('_', ' ')}"
        for kind, one in ONE.items()
        if deleted[kind]
    ]
    if not things and not deleted["objects"]:
        return "nothing"
    objects = f"{deleted['objects']} object{'' if deleted['objects'] == 1 else 's'} of {size(deleted['bytes'])}"
    return ", ".join([*things, objects])


def gc_lines(report: dict[str, Any]) -> list[str]:
    """A line with what was deleted, or would be, and one for each thing that is kept though it was deleted long ago."""
    begun = "Would delete" if report["dry_run"] else "Deleted"
    kept = [f"Kept {found['what']}: {found['why']}" for found in report["kept"][:SHOWN]]
    more = report["kept_count"] - len(kept)
    return [
        f"{begun} {counted(report['deleted'])} ({report['seconds']:.1f} s)",
        *kept,
        *([f"Kept {more} more for such reasons"] if more else []),
    ]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_gc_lines": gc_lines}
