"""What Argo CD is given: files of the same bytes, waves, the hook, and what Git says of them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.manifests import HEADER, text_of, write_all
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

FILTER = load_filter("mlflow_gitops")

CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config"}, "data": {"A": "1"}}
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mlflow-dev"}}
FOLDER = "environments/dev"

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def files(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / FOLDER).iterdir()}


@given(VALUES)
def test_whatever_an_object_holds_is_read_back_from_its_file(value: object) -> None:
    item = {**CONFIG, "data": value}
    assert yaml.safe_load(text_of(item)) == item


@given(st.dictionaries(TEXTS, TEXTS), st.randoms())
def test_the_order_of_an_object_s_keys_makes_no_other_bytes(data: dict[str, str], chance: random.Random) -> None:
    shuffled = list(data.items())
    chance.shuffle(shuffled)
    assert text_of({**CONFIG, "data": dict(shuffled)}) == text_of({**CONFIG, "data": data})


def test_a_program_stands_in_its_file_line_by_line() -> None:
    assert '    print("a")\n    print("b")\n' in text_of({**CONFIG, "data": {"x.py": 'print("a")\nprint("b")\n'}})


def test_writing_twice_changes_nothing_and_a_removed_object_s_file_goes(tmp_path: Path) -> None:
    wanted = {FOLDER: [CONFIG, SERVICE]}
    assert write_all(str(tmp_path), wanted, False).changes == [
        f"created {FOLDER}/configmap-config.yaml",
        f"created {FOLDER}/service-mlflow-dev.yaml",
    ]
    assert write_all(str(tmp_path), wanted, False).changes == []
    assert write_all(str(tmp_path), {FOLDER: [SERVICE]}, False).changes == [f"removed {FOLDER}/configmap-config.yaml"]
    assert list(files(tmp_path)) == ["service-mlflow-dev.yaml"]


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path: Path) -> None:
    write_all(str(tmp_path), {FOLDER: [CONFIG]}, False)
    before = files(tmp_path)
    written = write_all(str(tmp_path), {FOLDER: [{**CONFIG, "data": {"A": "2"}}, SERVICE]}, True)
    assert written.changes == [f"updated {FOLDER}/configmap-config.yaml", f"created {FOLDER}/service-mlflow-dev.yaml"]
    assert [diff["before"] for diff in written.diffs] == [before["configmap-config.yaml"], ""]
    assert files(tmp_path) == before


def test_a_file_of_somebody_else_stays_and_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "quota.yaml").write_text("kind: ResourceQuota\n")
    write_all(str(tmp_path), {FOLDER: [CONFIG]}, False)
    write_all(str(tmp_path), {FOLDER: []}, False)
    assert files(tmp_path) == {"quota.yaml": "kind: ResourceQuota\n"}
    (tmp_path / FOLDER / "configmap-config.yaml").write_text("mine\n")
    with pytest.raises(Error, match=r"configmap-config\.yaml is not a file of this role"):
        write_all(str(tmp_path), {FOLDER: [CONFIG]}, False)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({**CONFIG, "kind": "Secret"}, "Secret config is not written into a file"),
        ({**CONFIG, "metadata": {"name": "../../etc"}}, "expected a name of lower case letters"),
    ],
)
def test_what_does_not_belong_into_a_file_is_refused(tmp_path: Path, item: dict, told: str) -> None:
    with pytest.raises(Error, match=told):
        write_all(str(tmp_path), {FOLDER: [item]}, False)


def test_a_working_tree_that_is_not_there_is_refused() -> None:
    with pytest.raises(Error, match=r"/nowhere is no directory; expected a Git working tree"):
        write_all("/nowhere", {}, False)


def test_a_read_only_working_tree_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "environments").write_text("a file where the folder should be")
    with pytest.raises(Error, match=r"environments/dev"):
        write_all(str(tmp_path), {FOLDER: [CONFIG]}, False)


def test_an_object_is_in_the_first_wave_that_names_it_and_stays_as_it_was() -> None:
    found = FILTER.in_waves({"-1": [CONFIG], "2": [SERVICE, {**CONFIG, "data": {}}]})
    waves = {item["kind"]: item["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"] for item in found}
    assert waves == {"ConfigMap": "-1", "Service": "2"}
    assert found[0]["data"] == {"A": "1"}
    assert "annotations" not in CONFIG["metadata"]


def test_the_hook_is_the_job_s_pod_with_one_container_more_and_its_deadline() -> None:
    containers = {"initContainers": [{"name": "plan"}], "containers": [{"name": "schema"}], "restartPolicy": "Never"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": containers}
    job = {
        "kind": "Job",
        "metadata": {"name": "mlflow-schema-dev", "namespace": "mlflow-dev", "labels": {}},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 60, "template": template},
    }
    found = FILTER.hook(job, first={"name": "bucket"})
    assert found["kind"] == "Pod"
    assert found["metadata"]["labels"] == {"a": "b"}
    assert found["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "Sync"
    names = [container["name"] for container in found["spec"]["initContainers"] + found["spec"]["containers"]]
    assert names == ["bucket", "plan", "schema"]
    assert (found["spec"]["activeDeadlineSeconds"], found["spec"]["restartPolicy"]) == (60, "Never")
    assert [container["name"] for container in containers["initContainers"]] == ["plan"]


@pytest.fixture
def clone(tmp_path: Path) -> SimpleNamespace:
    """A working tree that follows a branch, with one commit pushed."""
    tree = tmp_path / "tree"

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *who, *arguments], cwd=tree, capture_output=True, text=True, check=True)
        return done.stdout

    tree.mkdir()
    git("init", "--quiet")
    git("init", "--quiet", "--bare", str(tmp_path / "bare"))
    git("remote", "add", "origin", str(tmp_path / "bare"))
    (tree / "with space.yaml").write_text("a")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    git("push", "--quiet", "--set-upstream", "origin", "main")
    look = lambda: FILTER.state(git("status", "--porcelain=v2", "--branch", "--untracked-files=all"))  # noqa: E731
    return SimpleNamespace(tree=tree, git=git, state=look)


def test_a_pushed_tree_is_told_from_one_with_changes_and_one_with_a_commit_of_its_own(clone: SimpleNamespace) -> None:
    head = clone.git("rev-parse", "HEAD").strip()
    assert clone.state() == {"commit": head, "branch": "main", "pushed": True, "uncommitted": []}
    (clone.tree / "with space.yaml").write_text("b")
    (clone.tree / "new one.yaml").write_text("c")
    assert clone.state()["uncommitted"] == ["new one.yaml", "with space.yaml"]
    clone.git("add", "--all")
    assert clone.state()["uncommitted"] == ["new one.yaml", "with space.yaml"]
    clone.git("commit", "--quiet", "--message", "second")
    assert clone.state()["pushed"] is False
    assert clone.state()["uncommitted"] == []


def test_a_file_that_moved_is_told_by_its_new_name(clone: SimpleNamespace) -> None:
    clone.git("mv", "with space.yaml", "moved here.yaml")
    assert clone.state()["uncommitted"] == ["moved here.yaml"]


def test_a_branch_that_follows_none_is_not_pushed(clone: SimpleNamespace) -> None:
    clone.git("switch", "--quiet", "--create", "other")
    assert clone.state()["pushed"] is False
    assert clone.state()["branch"] == "other"


def test_the_header_is_a_comment() -> None:
    assert HEADER.startswith("# ")
    assert HEADER.endswith("\n")
