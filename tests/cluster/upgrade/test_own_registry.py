"""The model registry in a database of its own: made, upgraded and served as the others are."""

from __future__ import annotations

from collections.abc import Iterator

import old_release
import pytest
from conftest import Cluster, mlflow_client, site

pytestmark = pytest.mark.full

REGISTRY = ("-e", "mlflow_database_registry_name=mlflow_registry")
MODEL = """
client = mlflow.MlflowClient()
client.create_registered_model("apart")
answer = [model.name for model in client.search_registered_models()]
"""


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[None]:
    """An environment without databases, before and after."""
    old_release.remove(cluster)
    yield
    # Before the role that owns it.
    with cluster.database("dev", "postgres") as connection:
        connection.execute("DROP DATABASE IF EXISTS mlflow_registry WITH (FORCE)")
    old_release.remove(cluster)


@pytest.mark.usefixtures("empty")
def test_models_are_in_the_registrys_own_database(cluster: Cluster) -> None:
    run = site("dev", args=REGISTRY)
    assert run.status == 0, run.output
    assert mlflow_client("dev", cluster.secrets("dev"), MODEL) == ["apart"]
    count = "SELECT count(*) FROM registered_models"
    for database, models in (("mlflow_registry", 1), ("mlflow", 0)):
        with cluster.database("dev", database) as connection:
            assert connection.execute(count).fetchone()[0] == models, database
    again = site("dev", args=REGISTRY)
    assert (again.status, again.changed) == (0, 0), again.output
