"""MLflow's server with basic auth, which tells its clients to connect anew before it ends.

A client keeps its connection for its next request. The server closes those that are idle when it ends, and what a
client sends in that very moment is lost. So a pod's preStop hook leaves a mark, and from then on each answer says that
the connection ends with it: the next one leads to a server that stays.

MLflow finds this by the entry point `basic-auth` of the group mlflow.app, its interface for plugins. What is on
PYTHONPATH comes before MLflow's own.
"""

from __future__ import annotations

from pathlib import Path

MARK = Path("/tmp/draining")  # noqa: S108 - the pod has it for itself


class DrainingApp:
    """An ASGI application, whose answers end the connection while the mark is there."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            if message["type"] == "http.response.start" and MARK.exists():
                message = message | {"headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, answer)


def create_app() -> DrainingApp:
    """What MLflow gives to each of its workers."""
    from mlflow.server.auth import create_app as create_basic_auth_app

    # The hook runs, too, before a container that hangs is started again in the same pod.
    MARK.unlink(missing_ok=True)
    return DrainingApp(create_basic_auth_app())
