"""Processes of this machine that the tests start: where their programs are, which ports are free, and their end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT, wait_until


def built(part: str) -> Path:
    """Where build.py has put a part."""
    command = [sys.executable, ROOT / "roles/embedded_cluster/files/build.py", "--list"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["parts"]
    return next(Path(entry["path"]) for entry in listed if entry["name"] == part)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Processes:
    """Processes with a log each, that end together."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, {}

    def start(self, name: str, *command: str | Path, env: dict[str, str] | None = None, **options: Any) -> None:
        """Start one; its output goes into its log."""
        with (self.folder / f"{name}.log").open("w") as log:
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}, **options
            )

    def wait_for(self, name: str, port: int) -> None:
        """Wait until one accepts connections; if it ended instead, show the end of its log."""

        def accepts() -> bool:
            log = (self.folder / f"{name}.log").read_text()[-2000:]
            assert self.running[name].poll() is None, f"{name} ended: {log}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(accepts, 60, f"{name} accepts connections")

    def end(self) -> None:
        """End all of them."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
