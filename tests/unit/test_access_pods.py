"""Every pod is asked until it refuses a password, whatever one of its workers remembers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.ansible_mlflow import access_pods
from ansible.module_utils.ansible_mlflow.errors import Error


class Cluster:
    """A Deployment with three pods, one of them on its way out and one that has not started."""

    server = "https://cluster"

    def get(self, path: str) -> dict | None:
        return {"spec": {"selector": {"matchLabels": {"a": "b"}}}} if path.endswith("/mlflow-dev") else None

    def items(self, _path: str, labelSelector: str) -> list[dict[str, Any]]:
        assert labelSelector == "a=b"
        return [
            {"metadata": {"name": "two"}, "status": {"phase": "Running"}},
            {"metadata": {"name": "one", "deletionTimestamp": "now"}, "status": {"phase": "Running"}},
            {"metadata": {"name": "three"}, "status": {"phase": "Pending"}},
        ]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the pod answers, one after the other; 401 when these are over."""
    given: list[int] = []

    class Server:
        def __init__(self, *_where: Any) -> None:
            pass

        def send(self, *_request: Any) -> tuple[int, dict]:
            return (given.pop(0) if given else 401), {}

    @contextlib.contextmanager
    def tunnel(*_where: Any) -> Iterator[Any]:
        yield type("Tunnel", (), {"address": ("127.0.0.1", 1)})

    monkeypatch.setattr(access_pods, "Server", Server)
    monkeypatch.setattr(access_pods, "Tunnel", tunnel)
    monkeypatch.setattr(access_pods, "PAUSE_SECONDS", 0)
    return given


def test_only_pods_that_serve_are_asked() -> None:
    assert access_pods.running(Cluster(), "mlflow-dev", "mlflow-dev") == ["two"]
    with pytest.raises(Error, match="there is no Deployment other in namespace mlflow-dev"):
        access_pods.running(Cluster(), "mlflow-dev", "other")


def test_a_pod_has_to_refuse_several_times_in_a_row(answers: list[int]) -> None:
    servers = access_pods.Servers(Cluster(), "mlflow-dev", "mlflow", 5000, "")
    answers += [401, 401, 200, 401, 200]
    servers.wait_until_refused("two", ("admin", "former"), timeout=60)
    assert answers == []


def test_a_pod_that_goes_on_accepting_is_told(answers: list[int]) -> None:
    servers = access_pods.Servers(Cluster(), "mlflow-dev", "mlflow", 5000, "")
    answers += [200] * 1000
    with pytest.raises(Error, match="pod mlflow-dev/two answers 200 to the former password of user admin") as told:
        servers.wait_until_refused("two", ("admin", "former"), timeout=0)
    assert "'former'" not in str(told.value)
