"""Requests, while something else happens."""

from __future__ import annotations

import threading

import urllib3
from conftest import NODE_PORTS


class Load(threading.Thread):
    """Asks one path again and again, on one connection for as long as the server keeps it, and keeps what failed."""

    def __init__(self, path: str, every: float, password: str | None = None) -> None:
        super().__init__(daemon=True)
        self.path, self.every = path, every
        self.headers = urllib3.make_headers(basic_auth=f"admin:{password}" if password else None)
        self.server = urllib3.HTTPConnectionPool("localhost", NODE_PORTS["dev"], timeout=20, retries=False)
        self.sent, self.failed = 0, []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.sent += 1
            try:
                status = self.server.request("GET", self.path, headers=self.headers).status
            except urllib3.exceptions.HTTPError as error:
                self.failed.append(str(error))
            else:
                if status != 200:
                    self.failed.append(str(status))
