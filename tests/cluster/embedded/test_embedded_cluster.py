"""The embedded cluster as its user notices it: it heals, keeps its data, is closed to others, leaves no trace."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import urllib3
from conftest import KUBECONFIG, TRY, Cluster, Run, play, wait_until

DIRECTORY = Path("/var/lib/ansible-mlflow")
RUNTIME = Path("/run/ansible-mlflow")
VOLUMES = Path("/tmp/hostpath_pv")
ADDRESS = "10.250.0.1"
BRIDGE = "mlflow0"
LISTENERS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}
COMPONENTS = {*LISTENERS, "kube-router", "containerd", "containerd-shim-runc-v2", "supervisord", "volumes"}
DATA, SCRATCH = "test", "test-scratch"
# An address for documentation, which no machine has: this machine's on the way to its neighbour.
HERE = "198.51.100.1"
NAMESPACE = "embedded-cluster-test"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

# What it writes into its volume is different each time that it does not find it there. As the first process of its
# container, it has to ask for the signal that ends it.
KEEPER = """
import http.server, pathlib, signal, sys, uuid
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
file = pathlib.Path("/data/word")
if not file.exists():
    file.write_text(str(uuid.uuid4()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(file.read_bytes())
http.server.HTTPServer(("", 8000), Handler).serve_forever()
"""


def command(*argv: str, stdin: str | None = None) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def up(data: str = DATA) -> Run:
    """Bring the cluster up on a set of data."""
    run = play("playbooks/cluster.yml", args=(f"--extra-vars=embedded_cluster_data={data}",), timeout=300)
    assert run.status == 0, run.output
    return run


def down(delete: str = "") -> Run:
    """Take the cluster down, and remove a set of data."""
    return play(
        "playbooks/cluster_down.yml", args=(f"--extra-vars=embedded_cluster_delete_data={delete}",), timeout=120
    )


# --- what the machine shows ------------------------------------------------------------------------------------------


def stat(pid: int) -> list[str]:
    """The fields of a process from its state on; empty if it is gone."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return []


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def components() -> dict[int, str]:
    """Pid and name of each process that the cluster consists of. Docker's, say, has the same names elsewhere."""
    scripts = {"supervisor.supervisord": "supervisord", f"{DIRECTORY}/config/open_volumes.py": "volumes"}
    found = {}
    for pid in all_pids():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            name = next((scripts[word] for word in words if word in scripts), Path(words[0]).name)
            here = any(f"{place}/" in word for word in words for place in (DIRECTORY, RUNTIME))
            if here and name in COMPONENTS:
                found[pid] = name
    return found


def pod_processes() -> set[int]:
    """The shims' children, their children and so on."""
    parents = {pid: int(fields[1]) for pid in all_pids() if (fields := stat(pid))}
    family = {pid for pid, name in components().items() if name == "containerd-shim-runc-v2"}
    size, own = 0, set(family)
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return family - own


def lives(pid: int, started: str) -> bool:
    """Whether a process that started then still runs. The number alone may be another's by now."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX" and fields[19] == started


def mounts() -> list[str]:
    """Mount points that are the cluster's, and namespaces that are kept as a file."""
    places = (str(DIRECTORY), str(RUNTIME), "/var/lib/kubelet")
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(places) or "/cni-" in point]


def interfaces() -> list[str]:
    """The bridge, and what is plugged into it."""
    links = json.loads(command("ip", "-json", "link", "show"))
    return [link["ifname"] for link in links if BRIDGE in (link["ifname"], link.get("master"))]


def addresses(interface: str = "") -> set[str]:
    """The addresses of one interface or all."""
    links = json.loads(command("ip", "-json", "address", "show", *(["dev", interface] if interface else [])))
    return {info["local"] for link in links for info in link.get("addr_info", ())}


def outer_addresses() -> set[str]:
    """Where the machine's neighbours reach it."""
    own = addresses() - addresses("lo") - addresses(BRIDGE)
    return {address for address in own if not ipaddress.ip_address(address).is_link_local}


def firewall() -> list[str]:
    """Chains and rules of Kubernetes, of CNI and of the cluster's guard."""
    lines = (command("iptables-save") + command("ip6tables-save")).splitlines()
    return [line for line in lines if re.search(r"\b(KUBE|CNI|MLFLOW)-", line)]


def address_sets() -> list[str]:
    """What the chains of NetworkPolicies compare addresses with."""
    return [name for name in command("ipset", "list", "-name").split() if name.startswith("KUBE-")]


def cgroups() -> list[Path]:
    return [path for path in (*Path("/sys/fs/cgroup").glob("kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods"))]


def sysctls(names: list[str]) -> dict[str, str]:
    """Settings of the kernel by name."""
    return {name: Path("/proc/sys", name.replace(".", "/")).read_text().strip() for name in names}


def reachable(*targets: tuple[str, int], frm: tuple[str, ...] = ()) -> set[tuple[str, int]]:
    """Which of these addresses and ports accept a connection."""
    words = command(*frm, "python3", "-c", TRY, *(f"{host}:{port}" for host, port in targets)).split()
    return {(host, int(port)) for host, port in (word.rsplit(":", 1) for word in words)}


@contextmanager
def neighbour() -> Iterator[tuple[str, ...]]:
    """Another machine, as far as the network goes; it sends everything here. Yields what runs a command on it."""
    name, near, far = "mlflow-neighbour", "mlflow-near", "mlflow-far"
    inside = ("ip", "netns", "exec", name)
    command("ip", "netns", "add", name)
    try:
        command("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        command("ip", "address", "add", f"{HERE}/30", "dev", near)
        command("ip", "link", "set", near, "up")
        command(*inside, "ip", "address", "add", "198.51.100.2/30", "dev", far)
        command(*inside, "ip", "link", "set", far, "up")
        command(*inside, "ip", "route", "add", "default", "via", HERE)
        yield inside
    finally:
        # The pair goes with one of its ends; the namespace alone would take it away a moment later.
        subprocess.run(["ip", "link", "delete", near], check=False, capture_output=True)
        command("ip", "netns", "delete", name)


# --- what is in the cluster ------------------------------------------------------------------------------------------


class Keeper:
    """A ConfigMap, and a pod that keeps a word in a volume and tells it at a NodePort."""

    def __init__(self) -> None:
        meta = {"metadata": {"name": "keeper", "labels": {"app": "keeper"}}}
        core = Cluster().core
        self.remove()
        core.create_namespace({"metadata": {"name": NAMESPACE}})
        core.create_namespaced_config_map(NAMESPACE, {**meta, "data": {"written": "before"}})
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
        core.create_namespaced_persistent_volume_claim(NAMESPACE, {**meta, "spec": claim})
        # Everybody may come in; it is here for what kube-router makes of it.
        policy = {"podSelector": {"matchLabels": {"app": "keeper"}}, "ingress": [{}]}
        Cluster().networking.create_namespaced_network_policy(NAMESPACE, {**meta, "spec": policy})
        ports = {"type": "NodePort", "selector": {"app": "keeper"}, "ports": [{"port": 8000}]}
        self.port = core.create_namespaced_service(NAMESPACE, {**meta, "spec": ports}).spec.ports[0].node_port
        container = {
            "name": "keeper",
            "image": "localhost/mlflow:3.17.2",
            "command": ["python3", "-c", KEEPER],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": "keeper"}}
        # Removing a namespace takes at least half of the time that its pods may take to end.
        pod = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 2}
        template = {**meta, "spec": pod}
        spec = {"selector": {"matchLabels": {"app": "keeper"}}, "template": template, "strategy": {"type": "Recreate"}}
        Cluster().apps.create_namespaced_deployment(NAMESPACE, {**meta, "spec": spec})
        wait_until(lambda: self.answer(), 60, "the pod answers at its NodePort")
        self.word = self.answer()

    def remove(self) -> None:
        """Remove the namespace if there is one, and wait until it is gone."""
        core = Cluster().core
        if NAMESPACE in namespaces():
            core.delete_namespace(NAMESPACE)
            wait_until(lambda: NAMESPACE not in namespaces(), 60, f"namespace {NAMESPACE} is gone")

    def answer(self) -> str:
        """What the pod says; empty if it does not."""
        with suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"http://localhost:{self.port}", timeout=2, retries=False).data.decode()
        return ""

    def pod_address(self) -> str:
        return Cluster().core.list_namespaced_pod(NAMESPACE).items[0].status.pod_ip

    def check(self) -> None:
        """Everything written before is there, the node is Ready and the pod answers with its old word."""
        core = Cluster().core
        conditions = {item.type: item.status for item in core.list_node().items[0].status.conditions}
        assert conditions["Ready"] == "True"
        assert core.read_namespaced_config_map("keeper", NAMESPACE).data == {"written": "before"}
        wait_until(self.answer, 60, "the pod answers at its NodePort again")
        assert self.answer() == self.word


def namespaces() -> set[str]:
    return {item.metadata.name for item in Cluster().core.list_namespace().items}


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    """The cluster on the tests' data, whatever it ran on, with something in it to lose. Left up without it."""
    up()
    keeper = Keeper()
    yield keeper
    up()
    keeper.remove()


# --- at rest ---------------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_is_quick(keeper: Keeper, tmp_path: Path, monkeypatch) -> None:
    # A user with a Kubernetes of their own, which no part of this may read or write.
    theirs = tmp_path / ".kube/config"
    theirs.parent.mkdir()
    theirs.write_text("not even YAML: {")
    before = theirs.stat()
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    run = up()
    assert run.changed == 0, run.output
    assert run.seconds < 30
    assert theirs.read_text() == "not even YAML: {"
    assert theirs.stat().st_mtime_ns == before.st_mtime_ns


def test_nothing_listens_to_the_outside(keeper: Keeper) -> None:
    ours, seen, wrong = components(), set(), []
    allowed = {ADDRESS, *addresses(BRIDGE)}
    for line in command("ss", "-Hltunp").splitlines():
        pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)} & ours.keys()
        host = line.split()[4].rsplit(":", 1)[0].strip("[]").split("%")[0]
        seen |= {ours[pid] for pid in pids}
        if pids and not (host in allowed or (host != "*" and ipaddress.ip_address(host).is_loopback)):
            wrong.append(line)
    assert wrong == []
    assert seen >= LISTENERS


def test_a_node_port_answers_on_this_machine_alone(keeper: Keeper) -> None:
    assert keeper.answer() == keeper.word
    ports = (keeper.port, 6443, 10250)
    assert reachable(*((address, port) for address in outer_addresses() for port in ports)) == set()


def test_a_neighbour_that_sends_its_packets_here_reaches_nothing(keeper: Keeper) -> None:
    pod, service = keeper.pod_address(), "10.96.0.1"
    inner = [(ADDRESS, 6443), (ADDRESS, 10250), (ADDRESS, keeper.port), (pod, 8000), (service, 443)]
    assert reachable(*inner) == set(inner)
    with neighbour() as there:
        server = subprocess.Popen(["python3", "-m", "http.server", "--bind", HERE, "8000"], stderr=subprocess.DEVNULL)
        try:
            # Only with a neighbour whose packets do arrive is anything proven.
            wait_until(lambda: reachable((HERE, 8000), frm=there), 60, "the neighbour reaches this machine")
            assert reachable(*inner, (HERE, keeper.port), frm=there) == set()
        finally:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    "path", [DIRECTORY, KUBECONFIG, DIRECTORY / "pki", DIRECTORY / "data", f"{VOLUMES}/", RUNTIME], ids=str
)
def test_only_root_may_look(keeper: Keeper, path: Path | str) -> None:
    assert Path(path).exists()
    assert subprocess.run([*NOBODY, "ls", "/"], capture_output=True, check=False).returncode == 0
    ls = subprocess.run([*NOBODY, "ls", str(path)], capture_output=True, text=True, check=False)
    assert "Permission denied" in ls.stderr


def test_each_file_with_a_key_is_roots_alone(keeper: Keeper) -> None:
    # The directory above protects them already; a copy of one takes its mode along.
    files = [Path(KUBECONFIG), *(file for file in (DIRECTORY / "pki").iterdir() if file.is_file())]
    secret = [file for file in files if re.search("PRIVATE KEY|client-key", file.read_text())]
    assert len(secret) > 10
    assert [(str(f), oct(f.stat().st_mode)) for f in secret if f.stat().st_mode & 0o77 or f.stat().st_uid] == []


# --- harm ------------------------------------------------------------------------------------------------------------


def kill(pids: set[int]) -> None:
    """Kill processes at the same moment: none of them sees another go, starts it anew or cleans up after it."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def kill_component(name: str) -> None:
    pids = {pid for pid, found in components().items() if found == name}
    assert pids
    kill(pids)


def kill_the_api_server() -> None:
    kill_component("kube-apiserver")


def kill_supervisord() -> None:
    kill_component("supervisord")


def kill_everything() -> None:
    """What a machine is like that was thrown away and taken up again: files and mounts, but no process."""
    before = mounts()
    assert before
    assert pod_processes()
    kill({*components(), *pod_processes()})
    wait_until(lambda: not components(), 60, "every process is gone")
    assert mounts() == before


@pytest.mark.parametrize("harm", [kill_the_api_server, kill_supervisord, kill_everything], ids=lambda f: f.__name__)
def test_up_heals(keeper: Keeper, harm: Callable[[], None]) -> None:
    pods = {pid: stat(pid)[19] for pid in pod_processes()}
    harm()
    up()
    keeper.check()
    if harm is not kill_everything:
        assert [pid for pid, started in pods.items() if not lives(pid, started)] == [], "pods have to notice nothing"


# --- down, and sets of data ------------------------------------------------------------------------------------------


@pytest.fixture
def firewall_rule() -> Iterator[str]:
    """A rule of somebody else's in the firewall."""
    chain = "SOMEBODY-ELSES"
    command("iptables", "--new-chain", chain)
    command("iptables", "--append", "FORWARD", "--jump", chain)
    yield f"-A FORWARD -j {chain}"
    command("iptables", "--delete", "FORWARD", "--jump", chain)
    command("iptables", "--delete-chain", chain)


def test_down_leaves_nothing_but_the_data(keeper: Keeper, firewall_rule: str) -> None:
    processes = {pid: stat(pid)[19] for pid in (*components(), *pod_processes())}
    settings = json.loads((DIRECTORY / "before.json").read_text())["sysctls"]
    # Each of these finds something while the cluster runs, or it would prove nothing.
    looks = {
        "processes": components,
        "mounts": mounts,
        "interfaces": interfaces,
        "rules": firewall,
        "sets": address_sets,
        "cgroups": cgroups,
    }
    assert [name for name, look in looks.items() if not look()] == []
    plugged = set(interfaces())

    run = down()
    assert run.status == 0, run.output
    assert {name: found for name, look in looks.items() if (found := look())} == {}
    assert [pid for pid, started in processes.items() if lives(pid, started)] == []
    assert plugged.isdisjoint(link["ifname"] for link in json.loads(command("ip", "-json", "link", "show")))
    assert ADDRESS not in addresses()
    assert [str(path) for path in (RUNTIME, VOLUMES) if os.path.lexists(path)] == []
    assert sysctls(list(settings)) == settings
    assert firewall_rule in command("iptables-save")
    again = down()
    assert (again.status, again.changed) == (0, 0), again.output

    up()
    keeper.check()


@pytest.mark.full
def test_sets_of_data_are_apart_and_removed_by_name(keeper: Keeper) -> None:
    run = up(SCRATCH)
    assert f"the cluster now runs on the data set {SCRATCH}; {DATA} is kept" in run.output
    assert NAMESPACE not in namespaces()
    assert keeper.answer() == ""
    Cluster().core.create_namespace({"metadata": {"name": "of-scratch"}})

    running = components()
    refused = down(delete="no-such-set")
    assert refused.status != 0
    assert "there is no data set 'no-such-set' to remove" in refused.output.replace("''", "'")
    assert components() == running

    removed = down(delete=SCRATCH)
    assert removed.status == 0, removed.output
    sets = {path.name for path in (DIRECTORY / "data").iterdir()}
    assert SCRATCH not in sets
    assert DATA in sets

    up()
    assert "of-scratch" not in namespaces()
    keeper.check()
