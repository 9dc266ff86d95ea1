"""What goes wrong with a schema, in words and exit codes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path


class Exit:
    """Exit codes: 10 may come right by itself, 11 wants an upgrade, the others want a person."""

    CURRENT = 0
    USAGE = 2
    RETRYABLE = 10
    BEHIND = 11
    REFUSED = 12
    ACCESS = 13
    UPGRADE_FAILED = 14


class SchemaError(Exception):
    """One sentence for the operator, and the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(one_line(message))
        self.code = code


def one_line(text: object, length: int = 4000) -> str:
    """A text on one line, its end kept when it is too long."""
    return re.sub(r"\s+", " ", str(text)).strip()[-length:]


def say(sentence: str) -> None:
    """Progress, for the log; standard output is the report's."""
    print(sentence, file=sys.stderr, flush=True)


def keep_reason(message: str) -> None:
    """Leave the reason where Kubernetes looks for it."""
    path = Path(os.environ.get("MLFLOW_SCHEMA_TERMINATION_LOG", "/dev/termination-log"))
    try:
        if path.exists():
            path.write_text(message[:4000], "utf-8")
    except OSError:
        # It stands in the log as well.
        pass


def seconds_of(variable: str, default: float) -> float:
    """A number of seconds from the environment."""
    text = os.environ.get(variable, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise SchemaError(Exit.USAGE, f"{variable}: expected a number of seconds, got {text!r}") from None
