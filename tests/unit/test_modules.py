"""Every module: its documentation renders and names the options it takes; what it refuses without asking anybody."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "library").glob("mlflow_*.py"))
SECRET = "not-to-be-shown-12"
JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "verify"}, "spec": {}}
DATABASE = {
    "host": "127.0.0.1",
    "port": 1,
    "reach": "direct",
    "username": "mlflow",
    "migrator_username": "mlflow_migrator",
    "migrator_password": SECRET,
    "databases": ["mlflow"],
}
BUCKET = {"endpoint": "http://127.0.0.1:1", "reach": "direct", "bucket": "mlflow", "access_key": "key"}


@pytest.fixture(scope="module")
def rendered() -> dict:
    """What ansible-doc says of all modules, in one call."""
    command = [
        Path(sys.executable).with_name("ansible-doc"),
        "-M",
        ROOT / "library",
        "-t",
        "module",
        "--json",
        *MODULES,
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_there_are_modules():
    assert len(MODULES) >= 6


@pytest.mark.parametrize("name", MODULES)
def test_ansible_doc_renders(rendered, name):
    page = rendered[name]
    assert page["doc"]["short_description"]
    assert page["doc"]["attributes"]["check_mode"]["support"] == "full"
    assert yaml.safe_load(page["examples"])
    assert page["return"]


def compare(documented: dict, accepted: dict, where: str) -> list[str]:
    """How the documentation of options differs from what the module takes."""
    problems = [f"{where}: {name} is not in both" for name in set(documented) ^ set(accepted)]
    for name in set(documented) & set(accepted):
        page, spec = documented[name], accepted[name]
        for key, fallback in (("type", "str"), ("required", False), ("default", None), ("choices", None)):
            if page.get(key, fallback) != spec.get(key, fallback):
                problems.append(f"{where}: {name}.{key}: {page.get(key)} is documented, {spec.get(key)} is taken")
        if page.get("elements") != spec.get("elements"):
            problems.append(f"{where}: {name}.elements")
        problems += compare(page.get("suboptions") or {}, spec.get("options") or {}, f"{where}.{name}")
    return problems


@pytest.mark.parametrize("name", MODULES)
def test_documented_options_are_the_accepted_ones(rendered, name):
    assert compare(rendered[name]["doc"]["options"], importlib.import_module(name).ARGUMENTS, name) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_secret_is_hidden(name):
    def walk(options):
        for option, spec in options.items():
            if "password" in option or option.endswith("secret_key"):
                assert spec.get("no_log") is True, option
            walk(spec.get("options") or {})

    walk(importlib.import_module(name).ARGUMENTS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_stays_thin(name):
    assert len((ROOT / "library" / f"{name}.py").read_text().splitlines()) < 250


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mlflow_database", {**DATABASE, "password": ""}, ["password: expected"]),
        ("mlflow_database", {**DATABASE, "password": SECRET, "migrator_password": ""}, ["migrator_password: expected"]),
        ("mlflow_database", {**DATABASE, "password": SECRET, "migrator_username": "mlflow"}, ["migrator_username"]),
        ("mlflow_database", {**DATABASE, "password": SECRET, "username": "pg_mlflow"}, ["username", "pg_"]),
        ("mlflow_database", {**DATABASE, "password": SECRET, "databases": ["d" * 64]}, ["databases", "63 bytes"]),
        ("mlflow_database", {**DATABASE, "password": SECRET}, ["127.0.0.1:1", "refused"]),
        (
            "mlflow_database",
            {**DATABASE, "password": SECRET, "reach": "tunnel"},
            ["tunnel", "<service>.<namespace>.svc"],
        ),
        ("mlflow_bucket", {**BUCKET, "secret_key": ""}, ["secret_key: expected"]),
        ("mlflow_bucket", {**BUCKET, "secret_key": SECRET, "admin_access_key": "root"}, ["both or neither"]),
        ("mlflow_bucket", {**BUCKET, "secret_key": SECRET, "bucket": "My_Bucket"}, ["bucket: expected", "My_Bucket"]),
        (
            "mlflow_bucket",
            {**BUCKET, "secret_key": SECRET, "endpoint": "s3://mlflow"},
            ["endpoint: expected http://host"],
        ),
        ("mlflow_bucket", {**BUCKET, "secret_key": SECRET}, ["http://127.0.0.1:1", "refused"]),
        (
            "mlflow_cluster_info",
            {"kubeconfig": "/nowhere/kubeconfig", "namespace": "mlflow-dev"},
            ["there is no kubeconfig /nowhere/kubeconfig", "mlflow_environment_kubeconfig"],
        ),
        ("mlflow_job", {"namespace": "a", "job": {"kind": "Pod"}}, ["expected a manifest of kind Job"]),
        (
            "mlflow_job",
            {"namespace": "a", "job": {**JOB, "metadata": {"name": "x", "namespace": "b"}}},
            ["its namespace b is not the option namespace (a)"],
        ),
        ("mlflow_rollout", {"namespace": "a", "name": "b", "kubeconfig": "/nowhere"}, ["there is no kubeconfig"]),
        (
            "mlflow_schema",
            {
                "kubeconfig": "/nowhere",
                "namespace": "a",
                "job": JOB,
                "record": "r",
                "image": "i",
                "state": "checked",
                "releases": "r.json",
                "deployment": "d",
                "database": {"host": "h", "username": "u", "password": "p", "names": {"tracking": "n"}},
            },
            ["there is no kubeconfig"],
        ),
    ],
)
def test_a_refusal_is_one_line_that_names_what_is_expected(run_module, name, options, expected):
    result = run_module(name, **options)
    assert result["failed"]
    assert "\n" not in result["msg"]
    assert "exception" not in result
    for words in expected:
        assert words in result["msg"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlflow_job", {"namespace": "a", "job": JOB, "kubeconfig": "/nowhere"}),
        ("mlflow_rollout", {"namespace": "a", "name": "b", "kubeconfig": "/nowhere"}),
    ],
)
def test_check_mode_does_nothing_and_says_so(run_module, name, options):
    result = run_module(name, check_mode=True, **options)
    assert result["changed"] is False
    assert "check mode" in result["msg"]


def test_a_broken_kubeconfig_is_told_in_one_line(run_module, tmp_path):
    broken = tmp_path / "kubeconfig"
    broken.write_text("a: [b")
    result = run_module("mlflow_cluster_info", kubeconfig=str(broken), namespace="x")
    assert str(broken) in result["msg"]
    assert "\n" not in result["msg"]


def test_an_unknown_context_is_named(run_module, tmp_path):
    config = tmp_path / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "a",
                "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "a", "user": {"token": "t"}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            }
        )
    )
    result = run_module("mlflow_cluster_info", kubeconfig=str(config), context="prod", namespace="x")
    assert f"there is no context prod in kubeconfig {config}" in result["msg"]
    result = run_module("mlflow_cluster_info", kubeconfig=str(config), namespace="x")
    assert "https://127.0.0.1:1 cannot be reached: the connection was refused" in result["msg"]


def test_working_directly_imports_no_kubernetes():
    code = (
        "import sys, ansible.module_utils as m; m.__path__.append('module_utils'); sys.path.insert(0, 'library');"
        "import mlflow_database, mlflow_bucket, mlflow_schema;"
        "assert not {'kubernetes', 'psycopg', 'minio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
