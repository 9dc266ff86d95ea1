"""The answers of a server that is about to end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import load_file

SOURCE = Path(__file__).parents[2] / "roles/mlflow_server/files/mlflow_draining.py"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"OK"}


@pytest.fixture
def draining(tmp_path: Path) -> Any:
    """The module, with a mark of its own."""
    module = load_file(SOURCE)
    module.MARK = tmp_path / "draining"
    return module


def answers(draining: Any, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """What a client gets of an application that answers so."""
    got = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def send(message: dict[str, Any]) -> None:
        got.append(message)

    asyncio.run(draining.DrainingApp(app)({"type": "http"}, None, send))
    return got


def test_a_server_that_stays_answers_as_it_would(draining: Any) -> None:
    assert answers(draining, START, BODY) == [START, BODY]


def test_a_server_that_ends_closes_the_connection_with_its_answer(draining: Any) -> None:
    draining.MARK.touch()
    start, body = answers(draining, START, BODY)
    assert start == START | {"headers": [*START["headers"], (b"connection", b"close")]}
    assert body == BODY


@pytest.mark.parametrize("kind", ["lifespan.startup.complete", "websocket.accept"])
def test_what_is_no_answer_of_http_is_left_alone(draining: Any, kind: str) -> None:
    draining.MARK.touch()
    assert answers(draining, {"type": kind}) == [{"type": kind}]
