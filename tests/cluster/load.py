"""Requests, while something else happens."""

from __future__ import annotations

import logging
import threading

import urllib3
from conftest import request

# One that several threads share, and that it says it is full of, again and again, where they ask at the same moment.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class Load(threading.Thread):
    """Asks one path again and again, each time on a new connection, and keeps what failed."""

    def __init__(self, path: str, every: float, password: str | None = None) -> None:
        super().__init__(daemon=True)
        self.path, self.every, self.password = path, every, password
        self.sent, self.failed = 0, []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.sent += 1
            try:
                status = request("dev", self.path, password=self.password).status
            except urllib3.exceptions.HTTPError as error:
                self.failed.append(str(error))
            else:
                if status != 200:
                    self.failed.append(str(status))
