"""Runs a module that takes its time, and shows what it says while it runs.

A module can say nothing before it ends, and an upgrade of a large database, or a copy of a large model, takes its time.
So the module writes lines to a file, and this action, which runs in Ansible itself, shows them as they come.
mlflow_model_promotion has it too.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DISPLAY = Display()
INTERVAL = 0.5


class ActionModule(ActionBase):
    """See the module of the same name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, with the file of its progress."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        # Every module runs on the machine that runs Ansible: see ansible_connection in the inventories.
        with tempfile.TemporaryDirectory() as directory:
            path, ended = Path(directory, "progress"), threading.Event()
            shower = threading.Thread(target=show, args=(path, ended, task_vars["inventory_hostname"]), daemon=True)
            shower.start()
            try:
                arguments = {**self._task.args, "progress": str(path)}
                result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
            finally:
                ended.set()
                shower.join()
        return result


def show(path: Path, ended: threading.Event, host: str) -> None:
    """Show the lines of a file as they are added, until the end."""
    told, last = 0, False
    while not last:
        last = ended.wait(INTERVAL)
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in lines[told:]:
            DISPLAY.display(f"  [{host}] {line}")
        told = len(lines)
