"""The embedded cluster's programs: keys of builds, removal of firewall rules, refusals, renewal of certificates."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import load_file

FILES = Path(__file__).parents[2] / "roles/embedded_cluster/files"


build, node, pki = (load_file(FILES / f"{name}.py", f"embedded_cluster_{name}") for name in ("build", "node", "pki"))


@pytest.fixture
def settings(tmp_path):
    return node.Settings(
        directory=tmp_path / "state",
        run=tmp_path / "run",
        node_name="node",
        address="10.250.0.1",
        pod_cidr="10.251.0.0/16",
        service_cidr="10.96.0.0/16",
        dns_address="10.96.0.10",
        kubernetes=tmp_path / "kubernetes",
        containerd=tmp_path / "containerd",
        supervisor=tmp_path / "supervisor",
        images=[],
    )


@pytest.fixture(autouse=True)
def leave_the_machine_alone(monkeypatch):
    """What acts on every pod, interface and rule of the machine is out of reach: a real cluster may run here."""
    for name in ("pod_cgroups", "shims"):
        monkeypatch.setattr(node, name, lambda *_: pytest.fail("looked for the machine's pods"))
    for name in ("remove_network", "remove_firewall_rules", "restore_machine", "prepare_machine"):
        monkeypatch.setattr(node, name, lambda *_: pytest.fail("changed the machine"))


def copy_inputs(target, monkeypatch):
    """A copy of every input file of every build, which a test may change."""
    for part in build.parts(["3.17.2"]).values():
        for name in part.inputs:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((FILES / name).read_bytes())
    monkeypatch.setattr(build, "HERE", target)


def test_every_part_comes_after_what_it_needs():
    seen = set()
    for part in build.parts(["3.17.2"]).values():
        assert set(part.needs) <= seen
        seen.add(part.name)


def test_a_changed_input_changes_only_the_keys_that_depend_on_it(tmp_path, monkeypatch):
    copy_inputs(tmp_path, monkeypatch)
    known = build.parts(["3.17.2"])
    before = build.keys(known)
    assert build.keys(known) == before
    requirements = tmp_path / "images/mlflow/requirements-3.17.2.txt"
    requirements.write_text(requirements.read_text() + "\n# changed\n")
    after = build.keys(known)
    assert {name for name in known if after[name] != before[name]} == {"image-mlflow-3.17.2"}


def test_a_changed_pin_changes_the_keys_of_what_is_made_from_it(monkeypatch):
    before = build.keys(build.parts(["3.17.2"]))
    monkeypatch.setattr(build, "COREDNS_VERSION", "v9.9.9")
    after = build.keys(build.parts(["3.17.2"]))
    assert {name for name in before if after[name] != before[name]} == {"coredns", "image-coredns"}


def test_an_mlflow_version_without_requirements_is_refused():
    with pytest.raises(build.BuildError, match=r"requirements-0\.0\.1\.txt does not exist"):
        build.keys(build.parts(["0.0.1"]))


REQUIREMENTS = sorted((FILES / "images/mlflow").glob("requirements-*.txt"))


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_requirements_pin_their_version_and_what_its_server_needs(path):
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.count("==") != 1] == []
    pins = dict(line.split("==") for line in lines)
    assert pins["mlflow"] == path.stem.removeprefix("requirements-")
    assert {"psycopg2-binary", "boto3", "flask-wtf", "prometheus-flask-exporter", "sqlalchemy"} <= set(pins)


def test_a_failed_build_leaves_nothing_and_says_what_was_printed(tmp_path):
    part = build.Part("broken", 1, lambda run: run.command("sh", "-c", "echo the reason; exit 3"))
    target = tmp_path / "broken-key"
    with pytest.raises(build.BuildError, match=r"exited with 3(.|\n)*the reason"):
        build.make(part, {}, target)
    assert not target.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"broken.lock", "broken.log"}


def test_a_build_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".building-part-1234").mkdir()
    part = build.Part("part", 1, lambda run: (run.directory / "made").touch())
    build.make(part, {}, tmp_path / "part-key")
    assert {path.name for path in tmp_path.iterdir()} == {"part.lock", "part.log", "part-key"}
    assert (tmp_path / "part-key/made").exists()


def test_the_version_of_mlflow_built_by_hand_is_the_one_the_role_builds():
    defaults = yaml.safe_load((FILES.parent / "defaults/main.yml").read_text())
    assert defaults["embedded_cluster_mlflow_versions"] == [build.MLFLOW_VERSION]


def test_the_cluster_is_whole_without_what_only_tests_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = build.parts([build.MLFLOW_VERSION])
    for name, key in build.keys(known).items():
        if not known[name].only_tests:
            (tmp_path / "ansible-mlflow" / f"{name}-{key}").mkdir(parents=True)
    for names, missing in (["all"], 0), (["versitygw"], 1), (["all", "versitygw"], 1):
        monkeypatch.setattr(sys, "argv", ["build.py", "--check", *names])
        assert build.main() == missing
    monkeypatch.setattr(sys, "argv", ["build.py", "--list"])
    build.main()
    listed = json.loads(capsys.readouterr().out)["parts"]
    only_tests = {part["name"] for part in listed if part["only_tests"]}
    assert only_tests == {"versitygw", "argocd", "external-secrets", "metrics-server", "contour", "prometheus"}


def test_what_is_missing_is_known_before_any_package_is_installed(tmp_path):
    command = [sys.executable, "-I", "-S", FILES / "build.py", "--check", "all"]
    done = subprocess.run(command, env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_build_prunes_what_was_not_used_for_a_month(tmp_path):
    old, used, other = (
        tmp_path / f"{name}-{key * 16}" for name, key in (("part", "a"), ("part", "b"), ("my-part", "c"))
    )
    for path, days in ((old, 31), (used, 29), (other, 31)):
        path.mkdir()
        os.utime(path, (time.time() - days * 86400,) * 2)
    build.make(build.Part("part", 1, lambda run: None), {}, tmp_path / f"part-{'d' * 16}")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {used.name, other.name, f"part-{'d' * 16}"}


IPTABLES = """\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:CNI-abc - [0:0]
:KUBE-SERVICES - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A POSTROUTING -s 10.251.0.2/32 -m comment --comment "name: \\"ansible-mlflow\\"" -j CNI-abc
-A KUBE-SERVICES -j KUBE-SERVICES
-A MINE -j ACCEPT
COMMIT
*mangle
:MLFLOW-GUARD - [0:0]
-A PREROUTING -j MLFLOW-GUARD
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -m comment --comment "about KUBE things" -j ACCEPT
COMMIT
"""


def test_only_the_clusters_sets_of_addresses_are_removed_once_the_kernel_lets_them_go(monkeypatch):
    there, in_use = ["KUBE-SRC-2ABC", "mine", "KUBE-DST-3DEF", "KUBERNETES"], ["KUBE-DST-3DEF"]

    def run(*words, check=True):
        if words[1] == "list":
            return "\n".join(there)
        if words[2] in in_use:
            assert not check
            in_use.remove(words[2])
        else:
            there.remove(words[2])
        return ""

    monkeypatch.setattr(node, "run", run)
    monkeypatch.setattr(node.shutil, "which", lambda _: "/usr/sbin/ipset")
    assert node.remove_address_sets() == ["removed 2 sets of addresses of Kubernetes"]
    assert there == ["mine", "KUBERNETES"]
    assert node.remove_address_sets() == []


def test_only_the_clusters_firewall_rules_are_removed():
    assert node.firewall_removal(IPTABLES).splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-D POSTROUTING -s 10.251.0.2/32 -m comment --comment "name: \\"ansible-mlflow\\"" -j CNI-abc',
        "-F CNI-abc",
        "-F KUBE-SERVICES",
        "-X CNI-abc",
        "-X KUBE-SERVICES",
        "COMMIT",
        "*mangle",
        "-D PREROUTING -j MLFLOW-GUARD",
        "-F MLFLOW-GUARD",
        "-X MLFLOW-GUARD",
        "COMMIT",
    ]


def test_a_clean_firewall_is_not_touched():
    assert node.firewall_removal("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n") == ""


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ({"dst": "default", "dev": "eth0"}, None),
        ({"dst": "192.0.2.0/24", "dev": "eth0"}, None),
        ({"dst": "10.251.0.0/16", "dev": node.BRIDGE}, None),
        ({"dst": "10.96.5.0/24", "dev": "eth0"}, r"needs 10\.96\.0\.0/16, but 10\.96\.5\.0/24 is on eth0"),
        ({"dst": "10.0.0.0/8", "dev": "tun0"}, r"but 10\.0\.0\.0/8 is on tun0"),
    ],
)
def test_addresses_in_use_are_refused(settings, monkeypatch, route, message):
    monkeypatch.setattr(node, "run", lambda *argv, **_: json.dumps([] if "address" in argv else [route]))
    if message is None:
        node.check_addresses(settings)
    else:
        with pytest.raises(node.NodeError, match=message):
            node.check_addresses(settings)


def test_a_dead_supervisor_is_seen_as_dead(settings):
    settings.run.mkdir()
    (settings.run / "supervisor.sock").touch()
    assert not node.Supervisor(settings).alive()


def test_a_dry_run_writes_nothing_and_says_what_it_would(settings):
    changes = node.up(settings, dry_run=True)
    assert f"wrote {settings.directory}/config/node.json" in changes
    assert "started kubelet" in changes
    assert not settings.directory.exists()


def test_a_tree_with_a_mount_in_it_is_not_removed(settings, monkeypatch):
    settings.run.mkdir()
    monkeypatch.setattr(node, "mounts_below", lambda *_: [f"{settings.run}/mounted"])
    with pytest.raises(node.NodeError, match="is not removed"):
        node.remove_tree(settings.run)
    assert settings.run.exists()


@pytest.fixture
def two_sets(settings, monkeypatch, tmp_path):
    """A machine that ran on the data set demo and also has one called test."""
    monkeypatch.setattr(node, "VOLUMES_LINK", tmp_path / "hostpath_pv")
    for name in ("demo", "test"):
        (settings.directory / f"data/{name}/volumes").mkdir(parents=True)
        (settings.directory / f"data/{name}/volumes/file").write_text(name)
    settings.marker.write_text("demo\n")
    return settings


@pytest.mark.parametrize("name", ["", "Demo", "../etc", "a/b", "1st", "a" * 31, "demo\n"])
def test_a_name_that_cannot_be_a_data_sets_is_refused(settings, tmp_path, name):
    source = tmp_path / "settings.json"
    source.write_text(json.dumps(dataclasses.asdict(settings) | {"data": name}, default=str))
    with pytest.raises(node.NodeError, match="cannot name a data set"):
        node.Settings.read(str(source))


def test_only_a_data_set_there_is_can_be_removed_and_nothing_happens_otherwise(two_sets, monkeypatch):
    monkeypatch.setattr(node, "end_components", lambda _: pytest.fail("something was stopped"))
    with pytest.raises(node.NodeError, match=r"no data set 'true' .* demo \(used last, \d+ MiB\), test \(\d+ MiB\)"):
        node.down(two_sets, "true")


def test_removing_a_data_set_keeps_the_others(two_sets):
    assert node.delete_set(two_sets, "test") == ["removed the data set test; there is still demo"]
    assert (node.data_sets(two_sets), node.data_in_use(two_sets)) == (["demo"], "demo")


def test_removing_the_data_set_in_use_makes_the_next_start_forget_its_pods(two_sets):
    node.delete_set(two_sets, "demo")
    assert (node.data_sets(two_sets), node.data_in_use(two_sets)) == (["test"], "")


def test_the_last_data_set_takes_the_rest_with_it(two_sets):
    node.delete_set(two_sets, "demo")
    assert "the last one" in node.delete_set(two_sets, "test")[0]
    assert not two_sets.directory.exists()


def test_a_change_of_data_sets_takes_down_and_forgets_before_it_counts(two_sets, monkeypatch):
    done = []
    monkeypatch.setattr(node, "down", lambda s: done.append(("down", node.data_in_use(s))) or [])
    monkeypatch.setattr(node, "forget_pods", lambda s: done.append(("forget", node.data_in_use(s))) or [])
    test = dataclasses.replace(two_sets, data="test")
    assert node.switch_data(test)[-1] == "the cluster now runs on the data set test; demo is kept"
    assert done == [("down", "demo"), ("forget", "demo")]
    assert node.data_in_use(test) == "test"


def test_a_change_of_data_sets_that_was_interrupted_is_done_again(two_sets, monkeypatch):
    def interrupted(_):
        raise node.NodeError("killed")

    monkeypatch.setattr(node, "down", lambda _: [])
    monkeypatch.setattr(node, "forget_pods", interrupted)
    with pytest.raises(node.NodeError, match="killed"):
        node.switch_data(dataclasses.replace(two_sets, data="test"))
    assert node.data_in_use(two_sets) == "demo"


def test_a_dry_run_says_that_the_data_set_would_change_and_changes_nothing(two_sets):
    changes = node.up(dataclasses.replace(two_sets, data="test"), dry_run=True)
    assert "the cluster now runs on the data set test; demo is kept" in changes
    assert node.data_in_use(two_sets) == "demo"


def test_volumes_lead_to_the_data_set(two_sets):
    test = dataclasses.replace(two_sets, data="test")
    for settings in (two_sets, test):
        assert node.link_volumes(settings) == [f"linked {node.VOLUMES_LINK} to {settings.volumes}"]
        assert node.link_volumes(settings) == []
        assert (node.VOLUMES_LINK / "file").read_text() == settings.data


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_somebody_elses_place_of_volumes_is_refused(two_sets, tmp_path, kind):
    if kind == "directory":
        node.VOLUMES_LINK.mkdir()
    else:
        node.VOLUMES_LINK.symlink_to(tmp_path)
    with pytest.raises(node.NodeError, match="is not ours"):
        node.link_volumes(two_sets)


def test_pods_are_forgotten_even_if_containerd_does_not_start(two_sets, monkeypatch):
    # It looks for pods on the whole machine, which may run a cluster.
    monkeypatch.setattr(node, "remove_runtime", lambda _: [])
    for name in ("kubelet/pods/pod", "logs/pods/pod", "containerd"):
        (two_sets.directory / name).mkdir(parents=True)
    changes = node.forget_pods(two_sets)
    assert f"removed {two_sets.directory}/kubelet" in changes
    assert "containerd does not start" in changes[-1]
    assert {path.name for path in two_sets.directory.iterdir()} == {"data", "data-set", "logs"}
    assert node.data_sets(two_sets) == ["demo", "test"]


def certificates(directory, monkeypatch, *options, address="10.250.0.1", renew=30):
    """Run pki.py and return the sentences of what it changed."""
    printed = []
    words = ["pki.py", f"--directory={directory}", "--node-name=n", f"--node-address={address}"]
    monkeypatch.setattr(sys, "argv", [*words, "--service-address=10.96.0.1", *options])
    monkeypatch.setattr(pki, "RENEW_BEFORE", datetime.timedelta(days=renew))
    monkeypatch.setattr("builtins.print", printed.append)
    pki.main()
    return json.loads(printed[0])["changes"]


def test_certificates_are_kept_and_only_root_reads_them(tmp_path, monkeypatch):
    assert certificates(tmp_path, monkeypatch)
    assert certificates(tmp_path, monkeypatch) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_dry_run_issues_no_certificate(tmp_path, monkeypatch):
    assert "issued certificate ca" in certificates(tmp_path / "state", monkeypatch, "--dry-run")
    assert not (tmp_path / "state").exists()


def test_certificates_are_renewed_when_they_no_longer_fit(tmp_path, monkeypatch):
    certificates(tmp_path, monkeypatch)
    changes = certificates(tmp_path, monkeypatch, address="10.250.0.2")
    assert {"issued certificate apiserver", "issued certificate kubelet-server"} == {
        c for c in changes if "issued" in c
    }
    (tmp_path / "pki/scheduler.crt").write_text("")
    assert "issued certificate scheduler" in certificates(tmp_path, monkeypatch, address="10.250.0.2")
    changes = certificates(tmp_path, monkeypatch, address="10.250.0.2", renew=400)
    assert "issued certificate admin" in changes
    assert "issued certificate ca" not in changes


def test_everything_is_issued_again_by_a_new_authority(tmp_path, monkeypatch):
    certificates(tmp_path, monkeypatch)
    (tmp_path / "pki/etcd-ca.key").unlink()
    assert certificates(tmp_path, monkeypatch) == [
        "issued certificate etcd-ca",
        "issued certificate etcd",
        "issued certificate apiserver-etcd-client",
    ]


ENDS_IN_PARTS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(30,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_its_last_thread() -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDS_IN_PARTS])
    try:
        stat = Path(f"/proc/{process.pid}/stat")
        for _ in range(100):
            if stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("the first thread did not end")
        assert node.alive(process.pid)
        assert node.end([process.pid], signal.SIGKILL, 10) == []
        # Not waited for yet: a zombie as a whole.
        assert stat.exists()
    finally:
        process.kill()
        process.wait()
    assert not node.alive(process.pid)
