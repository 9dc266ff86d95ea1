"""Three environments on one cluster know nothing of each other."""

from __future__ import annotations

import itertools

import pytest
from conftest import Cluster, mlflow_client, request, s3, site
from minio.error import S3Error

ENVIRONMENTS = ("dev", "stg", "prod")
PAIRS = list(itertools.permutations(ENVIRONMENTS, 2))
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_answers_at_its_own_port_to_its_own_password(cluster: Cluster, environment: str) -> None:
    password = cluster.secrets(environment)["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert request(environment, EXPERIMENT_0, password=password).status == 200


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_ones_login_is_refused_by_the_other(cluster: Cluster, one: str, other: str) -> None:
    password = cluster.secrets(one)["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert request(other, EXPERIMENT_0, password=password).status == 401


def test_a_run_of_dev_is_in_no_other(cluster: Cluster) -> None:
    log = """
mlflow.set_experiment("only in dev")
with mlflow.start_run() as run:
    mlflow.log_param("a", 1)
answer = run.info.run_id
"""
    run_id = mlflow_client("dev", cluster.secrets("dev"), log)
    look = f"""
client = mlflow.MlflowClient()
experiments = [experiment.name for experiment in client.search_experiments()]
try:
    found = client.get_run({run_id!r}).info.run_id
except mlflow.exceptions.MlflowException as error:
    found = error.error_code
answer = [experiments, found]
"""
    assert mlflow_client("dev", cluster.secrets("dev"), look)[1] == run_id
    for other in ("stg", "prod"):
        experiments, found = mlflow_client(other, cluster.secrets(other), look)
        assert "only in dev" not in experiments
        assert found == "RESOURCE_DOES_NOT_EXIST"


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_ones_keys_do_not_open_the_others_bucket(cluster: Cluster, one: str, other: str) -> None:
    keys = cluster.secrets(one)
    store = s3(other, keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
    with pytest.raises(S3Error) as refused:
        list(store.list_objects("mlflow", recursive=True))
    assert refused.value.code in ("InvalidAccessKeyId", "AccessDenied", "SignatureDoesNotMatch")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environments_keys_open_its_own_bucket_and_no_more(cluster: Cluster, environment: str) -> None:
    keys = cluster.secrets(environment)
    store = s3(environment, keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
    assert store.bucket_exists("mlflow")
    with pytest.raises(S3Error, match="Access Denied"):
        store.make_bucket("another")


@pytest.mark.parametrize(("environment", "port"), [("dev", 5434), ("stg", 5433), ("prod", 5432)], ids=ENVIRONMENTS)
def test_each_config_map_and_secret_carries_its_own_values(cluster: Cluster, environment: str, port: int) -> None:
    config = cluster.config(environment)
    host = f"{environment}-postgres.pgsql.svc.cluster.local"
    assert config["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg2://mlflow@{host}:{port}/mlflow"
    assert config["MLFLOW_S3_ENDPOINT_URL"] == f"http://minio-{environment}.pgsql.svc.cluster.local:9000"
    assert config["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == "s3://mlflow/"
    others = [name for name in ENVIRONMENTS if name != environment]
    assert not [
        value for value in config.values() for other in others if f"{other}-postgres" in value or f"-{other}" in value
    ]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ENVIRONMENTS, 2)))
def test_no_two_environments_share_a_secret(cluster: Cluster, one: str, other: str) -> None:
    assert set(cluster.secrets(one).values()).isdisjoint(cluster.secrets(other).values())


@pytest.mark.full
def test_a_second_run_of_all_three_changes_nothing(cluster: Cluster) -> None:
    before = [cluster.resource_versions(environment) for environment in ENVIRONMENTS]
    run = site(*ENVIRONMENTS)
    print(f"no-change run of three environments: {run.seconds:.1f} s wall, {run.cpu_seconds:.1f} s CPU")
    assert run.status == 0, run.output
    assert run.changed == 0, run.output
    assert [cluster.resource_versions(environment) for environment in ENVIRONMENTS] == before
