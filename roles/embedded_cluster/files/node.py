#!/usr/bin/env python3
"""The embedded cluster's node: starts and heals its processes, imports its images, takes all of it down again.

Settings are JSON, on standard input with `--settings -` (the role does that), else in the file that the last start
wrote, so that `node.py status` works by hand. Results are one JSON object: {"changes": [sentence, ...]}.

Only the standard library is used: taking the cluster down has to work when everything else is broken.
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import errno
import fcntl
import http.client
import ipaddress
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SETTINGS = Path("/var/lib/ansible-mlflow/config/node.json")
COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "kube-router",
    "volumes",
)
DATA_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
SHIM = "containerd-shim-runc-v2"
BRIDGE = "mlflow0"
# Where the hostpath provisioner of kube-controller-manager makes volumes: a fixed place, so a link to a lasting one.
VOLUMES_LINK = Path("/tmp/hostpath_pv")  # noqa: S108
LISTEN = (
    ("127.0.0.1", 2379),
    ("127.0.0.1", 2380),
    ("127.0.0.1", 10248),
    ("127.0.0.1", 10249),
    ("127.0.0.1", 10256),
    ("127.0.0.1", 10257),
    ("127.0.0.1", 10259),
    ("ADDRESS", 6443),
    ("ADDRESS", 10250),
)
# What Kubernetes needs of the kernel, and (with no value) what it changes by itself: all of it is put back by `down`.
SYSCTLS: dict[str, str | None] = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.route_localnet": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
    "vm.overcommit_memory": None,
    "vm.panic_on_oom": None,
    "kernel.panic": None,
    "kernel.panic_on_oops": None,
    "kernel.keys.root_maxkeys": None,
    "kernel.keys.root_maxbytes": None,
}
# Places that kubelet and CNI write to whatever they are told; `down` removes those that were not there before.
FOREIGN_PLACES = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/var/log/pods")
GUARD = "MLFLOW-GUARD"
ADDRESS_SET = re.compile(r"KUBE-(SRC|DST)-")
CHAIN = re.compile(rf"^:((?:KUBE|CNI)-\S+|{GUARD}) ")


class NodeError(Exception):
    """Something a person has to know, in words for that person."""


@dataclass(frozen=True)
class Settings:
    """What the role knows about this cluster (vars/main.yml)."""

    directory: Path
    run: Path
    node_name: str
    address: str
    pod_cidr: str
    service_cidr: str
    dns_address: str
    kubernetes: Path
    containerd: Path
    supervisor: Path
    images: list[dict[str, str]]
    data: str = "demo"
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, source: str) -> Settings:
        """From standard input (`-`) or a file. Raises NodeError if the file is not there or the data's name is none."""
        try:
            values = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NodeError(f"no cluster was started on this machine: {source} does not exist") from None
        for name in ("directory", "run", "kubernetes", "containerd", "supervisor"):
            values[name] = Path(values[name])
        settings = cls(**values)
        if not DATA_NAME.fullmatch(settings.data):
            rule = "a letter, then letters, digits or dashes, all in lower case, 30 at most"
            raise NodeError(f"{settings.data!r} cannot name a data set: {rule}")
        return settings

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def volumes(self) -> Path:
        """Where the volumes of the data set are."""
        return self.directory / "data" / self.data / "volumes"

    @property
    def marker(self) -> Path:
        """The file that names the set that the pods of kubelet and containerd belong to, running or not."""
        return self.directory / "data-set"

    @property
    def listen(self) -> list[tuple[str, int]]:
        """Every address and port the components listen on."""
        return [(self.address if host == "ADDRESS" else host, port) for host, port in LISTEN]


def run(*argv: str | Path, check: bool = True, stdin: str | None = None, timeout: float = 60) -> str:
    """Output of a command. Raises NodeError with its error output unless check is false."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(  # noqa: S603
            words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise NodeError(f"{' '.join(words)}: no end after {timeout:g} s") from None
    if check and done.returncode != 0:
        raise NodeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """One start, import or stop at a time. The lock is on the directory itself, so that no file is left."""
    if not settings.directory.exists():
        yield
        return
    handle = os.open(settings.directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- supervisord -----------------------------------------------------------------------------------------------------


class UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket: supervisord's own protocol, without a process for each question."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """A connection whose socket is the unix socket."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(60)
        connection.sock.connect(self.path)
        return connection


class Supervisor:
    """The supervisord that keeps the components running."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rpc: Any = xmlrpc.client.ServerProxy(
            "http://localhost", transport=UnixTransport(settings.run / "supervisor.sock")
        ).supervisor

    def alive(self) -> bool:
        """Whether it answers. A socket or pid file alone says nothing: both survive a kill and a reboot."""
        try:
            return self.rpc.getState()["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False

    def start(self) -> None:
        """Start it as a daemon with an environment of its own. Raises NodeError if it does not answer in 15 s."""
        python = self.settings.supervisor / "bin/python"
        configuration = self.settings.directory / "config/supervisord.conf"
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        command = [python, "-m", "supervisor.supervisord", "-c", configuration]
        null = subprocess.DEVNULL
        raise_file_limit()
        done = subprocess.run(  # noqa: S603
            command, env=environment, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, check=False
        )
        for _ in range(150 * (done.returncode == 0)):
            if self.alive():
                return
            time.sleep(0.1)
        log = self.settings.directory / "logs/supervisord.log"
        raise NodeError(f"supervisord did not start: {done.stderr.strip()}; its log is {log}")

    def states(self) -> dict[str, dict[str, Any]]:
        """What supervisord knows about each component."""
        return {process["name"]: process for process in self.rpc.getAllProcessInfo()}

    def update(self) -> list[str]:
        """Restart the components whose section of the configuration changed, start those that are down."""
        changes = []
        added, changed, removed = self.rpc.reloadConfig()[0]
        for name in [*changed, *removed]:
            self.rpc.stopProcessGroup(name)
            self.rpc.removeProcessGroup(name)
        for name in [*added, *changed]:
            self.rpc.addProcessGroup(name)
            changes.append(f"restarted {name} with its new configuration")
        for name, process in self.states().items():
            # BACKOFF would come back by itself, but only after a pause that has grown with every attempt.
            if process["statename"] not in ("RUNNING", "STARTING"):
                with contextlib.suppress(xmlrpc.client.Fault):
                    self.rpc.startProcess(name, False)
                changes.append(f"started {name}, which was {process['statename'].lower()}")
        return changes

    def stop(self, *names: str) -> None:
        """Stop components, waiting for each; one that is not running is fine."""
        for name in names:
            with contextlib.suppress(xmlrpc.client.Fault):
                self.rpc.stopProcess(name)


def raise_file_limit() -> None:
    """Let the components and pods open many files: a login's usual 1024 is too few for the API server."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 1 << 16), max(wanted, hard)))


# --- processes -------------------------------------------------------------------------------------------------------


def processes(settings: Settings) -> Iterator[tuple[int, str]]:
    """Pid and name of each process of this cluster, whoever started it and whatever became of its parent.

    A process is ours if its program is one of the cluster's and its arguments name the cluster's directories; the
    path of the program does not count, as it changes with every build.
    """
    places = (f"{settings.directory}/", f"{settings.run}/")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        scripts = {"supervisor.supervisord": "supervisord", f"{settings.directory}/config/open_volumes.py": "volumes"}
        name = next((scripts[word] for word in words if word in scripts), Path(words[0]).name)
        ours = any(place in word for word in words for place in places)
        if ours and name in (*COMPONENTS, SHIM, "supervisord"):
            yield int(entry.name), name


def end(pids: Iterable[int], number: int, wait: float) -> list[int]:
    """Send a signal to processes and wait for them to go; the ones that are still there are returned."""
    left = list(pids)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + wait
    while True:
        left = [pid for pid in left if alive(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, it holds nothing any more.

    Every thread is looked at: of a process that was killed the first may be a zombie already while others, which end
    a moment later, still hold its ports.
    """
    states = set()
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    for thread in threads:
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{pid}/task/{thread}/stat").read_text(encoding="utf-8")
            states.add(text.rsplit(")", 1)[1].split()[0])
    return not states <= {"Z", "X"}


def pod_cgroups() -> list[Path]:
    """The cgroups that kubelet made for pods, with either version of cgroups."""
    base = Path("/sys/fs/cgroup")
    return [path for path in (base / "kubepods", *base.glob("*/kubepods")) if path.is_dir()]


def pod_processes() -> set[int]:
    """Every process in a pod's cgroup, those without a living shim included."""
    pids: set[int] = set()
    for top in pod_cgroups():
        for listing in (top / "cgroup.procs", *top.rglob("cgroup.procs")):
            with contextlib.suppress(OSError):
                pids.update(int(word) for word in listing.read_text(encoding="utf-8").split())
    return pids - {0}


def children(parents: set[int]) -> set[int]:
    """The direct children of some processes: of shims, the first process of each container."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
                if parent in parents:
                    found.add(int(entry.name))
    return found


def shims(settings: Settings) -> set[int]:
    """The processes that hold the containers."""
    return {pid for pid, name in processes(settings) if name == SHIM}


def end_components(settings: Settings) -> list[str]:
    """End components that lost their supervisord (it first, lest it starts them again); pods are left alone."""
    found = [(pid, name) for pid, name in processes(settings) if name != SHIM]
    end([pid for pid, name in found if name == "supervisord"], signal.SIGKILL, 5)
    found = [(pid, name) for pid, name in processes(settings) if name != SHIM]
    # SIGKILL: a component is made to survive it, and the API server would keep its port for a minute otherwise.
    if left := end([pid for pid, _ in found], signal.SIGKILL, 10):
        raise NodeError(f"these processes do not end: {left}")
    return [f"ended {name} (process {pid}), which nobody supervised" for pid, name in found]


# --- what is left behind ---------------------------------------------------------------------------------------------


def mounts_below(*directories: Path) -> list[str]:
    """Mount points at or below directories, in the order in which they can be unmounted."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
        if any(Path(point).is_relative_to(directory) for directory in directories):
            points.append(point)
    return points[::-1]


def remove_tree(path: Path) -> None:
    """Remove a directory. Raises NodeError if something is mounted in it: that would be somebody's data."""
    if mounted := mounts_below(path):
        raise NodeError(f"{path} is not removed, this is still mounted: {mounted[0]}")
    shutil.rmtree(path, ignore_errors=True)


def firewall_removal(saved: str) -> str:
    """From the output of iptables-save, the input of iptables-restore that removes Kubernetes' and CNI's chains.

    Rules and chains of others are not mentioned, so nothing happens to them.
    """
    result = []
    for table in re.findall(r"^\*.*?^COMMIT$", saved, re.MULTILINE | re.DOTALL):
        lines = table.splitlines()
        chains = [match[1] for line in lines if (match := CHAIN.match(line))]
        if not chains:
            continue
        rules = [line.split(" ") for line in lines if line.startswith("-A ")]
        jumps = [rule for rule in rules if rule[1] not in chains and any(word in chains for word in rule)]
        result += [lines[0], *(" ".join(["-D", *rule[1:]]) for rule in jumps)]
        result += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains] + ["COMMIT"]
    return "".join(f"{line}\n" for line in result)


def guard_network(settings: Settings) -> list[str]:
    """Drop what comes from the machine's networks for the cluster's addresses.

    The kernel forwards for pods, and answers on any interface for an address of the loopback interface: a neighbour
    that sends its packets here would reach pods, Services and the API otherwise. Before any address is translated, so
    that answers to pods are not concerned: they are still addressed to the machine.
    """
    if f"-A PREROUTING -j {GUARD}\n" in run("iptables-save", "-t", "mangle"):
        return []
    networks = (f"{settings.address}/32", settings.pod_cidr, settings.service_cidr)
    rules = [f"-A {GUARD} -i {interface} -j RETURN" for interface in ("lo", BRIDGE)]
    rules += [f"-A {GUARD} -d {network} -j DROP" for network in networks]
    script = ["*mangle", f":{GUARD} - [0:0]", f"-F {GUARD}", *rules, f"-I PREROUTING -j {GUARD}", "COMMIT", ""]
    run("iptables-restore", "--noflush", "--wait", stdin="\n".join(script))
    return ["closed the cluster's addresses to the machine's networks"]


def remove_firewall_rules() -> list[str]:
    """Remove the chains of kube-proxy, kube-router, kubelet, CNI and our own."""
    changes = []
    for family in ("iptables", "ip6tables"):
        if not shutil.which(f"{family}-save"):
            continue
        if script := firewall_removal(run(f"{family}-save", check=False)):
            run(f"{family}-restore", "--noflush", "--wait", stdin=script)
            changes.append(f"removed the {family} chains of Kubernetes")
    return changes + remove_address_sets()


def remove_address_sets() -> list[str]:
    """Remove kube-router's sets of addresses, which only its chains used.

    The kernel lets go of a removed rule's set a moment later. Raises NodeError if one is still in use after 5 s.
    """
    if not (names := address_sets()):
        return []
    deadline = time.monotonic() + 5
    while left := address_sets():
        last = time.monotonic() > deadline
        for name in left:
            run("ipset", "destroy", name, check=last)
        time.sleep(0.1)
    return [f"removed {len(names)} sets of addresses of Kubernetes"]


def address_sets() -> list[str]:
    """The names of kube-router's sets of addresses."""
    names = run("ipset", "list", "-name", check=False).split() if shutil.which("ipset") else []
    return [name for name in names if ADDRESS_SET.match(name)]


def links(*filters: str) -> list[str]:
    """Names of network interfaces."""
    output = run("ip", "-json", "link", "show", *filters, check=False)
    return [link["ifname"] for link in json.loads(output or "[]") if link]


def remove_network() -> list[str]:
    """Remove the bridge and the pods' interfaces on it."""
    if BRIDGE not in links():
        return []
    for name in links("master", BRIDGE):
        run("ip", "link", "delete", name, check=False)
    run("ip", "link", "delete", BRIDGE, check=False)
    return [f"removed bridge {BRIDGE}"]


def remove_cgroups() -> None:
    """Remove the pods' cgroups, deepest first; the kernel needs a moment after the last process is gone."""
    for attempt in range(20):
        for top in pod_cgroups():
            inner = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
            for path in (*inner, top):
                with contextlib.suppress(OSError):
                    path.rmdir()
        if not pod_cgroups():
            return
        time.sleep(0.1 * (attempt > 0))


def remove_runtime(settings: Settings) -> list[str]:
    """Remove what pods leave when they are gone: as after a boot, for machines whose /run outlives a boot or a kill.

    Images, container metadata, volumes and logs stay; containerd and kubelet make the pods anew from them.
    """
    changes = []
    pods = shims(settings) | pod_processes()
    if pods:
        if left := end(pods, signal.SIGKILL, 10):
            raise NodeError(f"these processes of pods do not end: {left}")
        changes.append(f"ended {len(pods)} processes of pods")
    mounted = mounts_below(settings.run, settings.directory / "kubelet", settings.directory / "containerd")
    for point in mounted:
        run("umount", "--lazy", point, check=False)
    if mounted:
        changes.append(f"unmounted {len(mounted)} file systems of pods")
    changes += remove_network()
    remove_cgroups()
    for name in ("containerd", "shims", "runc", "cni"):
        remove_tree(settings.run / name)
    results = Path("/var/lib/cni/results")
    for result in results.glob("ansible-mlflow-*") if results.is_dir() else ():
        result.unlink(missing_ok=True)
    return changes


# --- data sets -------------------------------------------------------------------------------------------------------


def data_sets(settings: Settings) -> list[str]:
    """The names of the sets there are."""
    return sorted(path.name for path in (settings.directory / "data").glob("*") if path.is_dir())


def data_in_use(settings: Settings) -> str:
    """The set that the cluster runs on, or ran on last; empty before the first start."""
    return settings.marker.read_text(encoding="utf-8").strip() if settings.marker.exists() else ""


def size_mib(directory: Path) -> int:
    """What a directory takes of the disk, in MiB. Files come and go while it is looked at."""
    size = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return size // 2**20


def describe_data(settings: Settings) -> str:
    """The sets there are, for a person: `demo (in use, 210 MiB), test (95 MiB)`."""
    used = "in use" if Supervisor(settings).alive() else "used last"
    words = {data_in_use(settings): f"{used}, "}
    base = settings.directory / "data"
    return ", ".join(f"{n} ({words.get(n, '')}{size_mib(base / n)} MiB)" for n in data_sets(settings)) or "none"


def switch_data(settings: Settings) -> list[str]:
    """Take the cluster down and forget the pods of its data set, so that it can come up on another one.

    The marker comes last: a switch that was interrupted is done again, whichever set is asked for next.
    """
    changes = down(settings) + write_configuration(settings, dry_run=False) + forget_pods(settings)
    sentence = data_sentence(settings)
    settings.marker.write_text(f"{settings.data}\n", encoding="utf-8")
    return [*changes, sentence]


def data_sentence(settings: Settings) -> str:
    """What a switch says."""
    before = data_in_use(settings)
    kept = f"; {before} is kept" if before in data_sets(settings) else ""
    return f"the cluster now runs on the data set {settings.data}{kept}"


def forget_pods(settings: Settings) -> list[str]:
    """Remove the pods that kubelet and containerd know, while neither runs. Images stay.

    Volumes are not concerned: remove_runtime has unmounted everything, and remove_tree refuses what is mounted.
    """
    known = [settings.directory / "kubelet", settings.directory / "logs/pods"]
    changes = [f"removed {path}" for path in known if path.exists()]
    for path in known:
        remove_tree(path)
    logs = Path("/var/log/containers")
    for link in logs.iterdir() if logs.is_dir() else ():
        if link.is_symlink() and link.readlink().is_relative_to(settings.directory):
            link.unlink()
    if (root := settings.directory / "containerd").exists():
        try:
            forget_containers(settings)
            changes.append("removed the containers of all pods")
        except NodeError as error:
            # Without them the images are gone as well, and imported again.
            end_components(settings)
            remove_runtime(settings)
            remove_tree(root)
            changes.append(f"removed {root}: {error}")
    return changes


def forget_containers(settings: Settings) -> None:
    """Remove every container, sandbox and lease from containerd, which is started for that. Raises NodeError."""
    settings.run.mkdir(mode=0o700, exist_ok=True)
    ctr = ctr_command(settings)
    null = subprocess.DEVNULL
    command = [settings.containerd / "containerd", f"--config={settings.directory}/config/containerd.toml"]
    try:
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)  # noqa: S603
    except OSError as error:
        raise NodeError(f"containerd does not start: {error}") from None
    try:
        wait_for_containerd(ctr)
        # A sandbox before its container: removing it removes both, and what containerd keeps in files about it.
        for kind, *options in (("sandboxes", "--force"), ("containers",), ("leases",)):
            if names := listed(ctr, kind):
                run(*ctr, kind, "remove", *options, *names, check=False)
            if left := listed(ctr, kind):
                raise NodeError(f"containerd keeps {len(left)} {kind}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        remove_tree(settings.run / "containerd")


def ctr_command(settings: Settings) -> list[str | Path]:
    """containerd's own client, for what belongs to Kubernetes."""
    sock = settings.run / "containerd/containerd.sock"
    return [settings.containerd / "ctr", "--address", sock, "--namespace", "k8s.io"]


def listed(ctr: list[str | Path], kind: str) -> list[str]:
    """The first column of one of ctr's lists, without the heading."""
    return [line.split()[0] for line in run(*ctr, kind, "list").splitlines()[1:] if line.strip()]


def wait_for_containerd(ctr: list[str | Path]) -> None:
    """Wait until containerd answers. Raises NodeError after 60 s."""
    deadline = time.monotonic() + 60
    while True:
        try:
            run(*ctr, "images", "list", "--quiet")
            return
        except NodeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


# --- the machine -----------------------------------------------------------------------------------------------------


def sysctl_path(name: str) -> Path:
    """The file of a kernel setting."""
    return Path("/proc/sys") / name.replace(".", "/")


def remember_machine(settings: Settings) -> None:
    """Note how the machine was before the first start, for `down` to put it back."""
    path = settings.directory / "before.json"
    if path.exists():
        return
    values = {n: sysctl_path(n).read_text(encoding="utf-8").strip() for n in SYSCTLS if sysctl_path(n).exists()}
    absent = [place for place in FOREIGN_PLACES if not Path(place).exists()]
    path.write_text(json.dumps({"sysctls": values, "absent": absent}, indent=2) + "\n", encoding="utf-8")


def restore_machine(settings: Settings) -> list[str]:
    """Put back what remember_machine noted."""
    path = settings.directory / "before.json"
    if not path.exists():
        return []
    changes, before = [], json.loads(path.read_text(encoding="utf-8"))
    for name, value in before["sysctls"].items():
        file = sysctl_path(name)
        if file.exists() and file.read_text(encoding="utf-8").strip() != value:
            file.write_text(value, encoding="utf-8")
            changes.append(f"set {name} back to {value}")
    for place in before["absent"]:
        if Path(place).exists():
            remove_tree(Path(place))
            changes.append(f"removed {place}")
    path.unlink()
    return changes


def own_addresses() -> dict[str, str]:
    """Each IPv4 address of this machine with its interface."""
    output = json.loads(run("ip", "-json", "-4", "address", "show"))
    return {info["local"]: link["ifname"] for link in output for info in link.get("addr_info", ())}


def prepare_machine(settings: Settings) -> list[str]:
    """Kernel settings, the node's address and who may reach it, the place of volumes."""
    changes = []
    for module in ("br_netfilter", "overlay"):
        # Either is often built in, and a container may not load modules: what is really missing shows later.
        if shutil.which("modprobe") and not Path(f"/sys/module/{module}").exists():
            run("modprobe", "--quiet", module, check=False)
    remember_machine(settings)
    for name, value in SYSCTLS.items():
        file = sysctl_path(name)
        if value and file.exists() and file.read_text(encoding="utf-8").strip() != value:
            file.write_text(value, encoding="utf-8")
            changes.append(f"set {name} to {value}")
    if settings.address not in own_addresses():
        run("ip", "address", "add", f"{settings.address}/32", "dev", "lo")
        changes.append(f"added address {settings.address} to the loopback interface")
    changes += guard_network(settings)
    return changes + link_volumes(settings)


def link_volumes(settings: Settings) -> list[str]:
    """Lead the hostpath provisioner to the volumes of the data set. Raises NodeError if its place is somebody's."""
    settings.volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
    if VOLUMES_LINK.is_symlink() and VOLUMES_LINK.lstat().st_uid == os.geteuid():
        target = VOLUMES_LINK.readlink()
        if target == settings.volumes:
            return []
        if target.is_relative_to(settings.directory):
            VOLUMES_LINK.unlink()
    try:
        VOLUMES_LINK.symlink_to(settings.volumes)
    except FileExistsError:
        raise NodeError(f"{VOLUMES_LINK} exists and is not ours: move it away") from None
    return [f"linked {VOLUMES_LINK} to {settings.volumes}"]


def check_ports(settings: Settings) -> None:
    """Raises NodeError if another program has one of the cluster's ports."""
    for host, port in settings.listen:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                owner = run("ss", "-Hltnp", f"sport = :{port}", check=False).strip()
                raise NodeError(
                    f"{host}:{port} is in use; is another Kubernetes running here? Stop it first. {owner}"
                ) from None


def check_addresses(settings: Settings) -> None:
    """Raises NodeError if the machine already uses the cluster's addresses."""
    interface = own_addresses().get(settings.address, "lo")
    if interface != "lo":
        raise NodeError(f"{settings.address} is already the address of {interface}")
    ours = [ipaddress.ip_network(cidr) for cidr in (settings.pod_cidr, settings.service_cidr)]
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        if route["dst"] == "default" or route.get("dev") in (BRIDGE, "lo") or route.get("type") == "broadcast":
            continue
        network = ipaddress.ip_network(route["dst"], strict=False)
        for other in ours:
            if network.overlaps(other) and network.prefixlen > 0:
                raise NodeError(f"the cluster needs {other}, but {network} is on {route.get('dev', 'a route')}")


def free_memory_mib() -> int:
    """Memory that is available, in MiB."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def check(settings: Settings, memory: int, disk: int) -> None:
    """Raises NodeError if a cluster cannot be started on this machine; a running one is not asked."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise NodeError(f"needs Linux on amd64 or arm64, this is {platform.system()} on {platform.machine()}")
    if os.geteuid() != 0:
        raise NodeError("needs root: it mounts file systems, makes network interfaces and firewall rules")
    if Supervisor(settings).alive():
        return
    if free_memory_mib() < memory:
        raise NodeError(f"needs {memory} MiB of free memory, there are {free_memory_mib()}")
    for wanted in (settings.directory, settings.kubernetes.parent):
        place = next(path for path in (wanted, *wanted.parents) if path.exists())
        if (free := shutil.disk_usage(place).free // 2**20) < disk:
            raise NodeError(f"needs {disk} MiB of free disk at {wanted}, there are {free}")
    if shutil.which("ip"):
        check_addresses(settings)


def write_configuration(settings: Settings, dry_run: bool) -> list[str]:
    """Write the files of the configuration that differ, and the settings, for a later `node.py status` by hand."""
    base = settings.directory / "config"
    files = settings.files | {"node.json": json.dumps(asdict(settings), default=str, indent=2, sort_keys=True) + "\n"}
    changes = []
    for name, text in files.items():
        path = base / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        changes.append(f"wrote {path}")
        if not dry_run:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o600)
            temporary.rename(path)
    return changes


# --- verbs -----------------------------------------------------------------------------------------------------------


def up(settings: Settings, dry_run: bool) -> list[str]:
    """Bring every component up, from whatever state the machine is in; a dry run only says what is not as it should."""
    supervisor = Supervisor(settings)
    running, same_data = supervisor.alive(), data_in_use(settings) == settings.data
    if dry_run:
        changes = write_configuration(settings, dry_run)
        if running and same_data:
            idle = [name for name, process in supervisor.states().items() if process["statename"] != "RUNNING"]
            return changes + [f"started {name}" for name in idle]
        switched = [] if same_data else [data_sentence(settings)]
        return changes + switched + [f"started {name}" for name in COMPONENTS]
    changes = write_configuration(settings, dry_run) if same_data else switch_data(settings)
    running = running and same_data
    if not running:
        changes += end_components(settings)
    # Pods that live are adopted. Without them, or with their network gone, it is as after a boot: start afresh.
    if not shims(settings) and not running:
        changes += remove_runtime(settings)
    elif shims(settings) and BRIDGE not in links():
        if running:
            supervisor.stop("kubelet", "containerd")
        changes += remove_runtime(settings)
    settings.run.mkdir(mode=0o700, exist_ok=True)
    for name in ("logs", "logs/pods", "data", f"data/{settings.data}", f"data/{settings.data}/etcd", "kubelet"):
        (settings.directory / name).mkdir(mode=0o700, exist_ok=True)
    (settings.run / "shims").mkdir(mode=0o711, exist_ok=True)
    changes += prepare_machine(settings)
    if not running:
        check_addresses(settings)
        check_ports(settings)
        supervisor.start()
        changes.append("started supervisord and every component")
    return changes + supervisor.update()


def down(settings: Settings, delete_data: str = "") -> list[str]:
    """Take everything down. Data and certificates stay.

    delete_data names a data set to remove then; with the last one goes the rest: certificates, images, logs.
    Raises NodeError, with nothing changed, if there is no such set.
    """
    if delete_data and delete_data not in data_sets(settings):
        raise NodeError(f"there is no data set {delete_data!r} to remove; there are: {describe_data(settings)}")
    changes = []
    supervisor = Supervisor(settings)
    if supervisor.alive():
        supervisor.stop("kubelet", "kube-controller-manager", "kube-scheduler")
        # Without kubelet nobody starts a container again, so each can end in its own way.
        end(children(shims(settings)), signal.SIGTERM, 10)
        with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
            supervisor.rpc.shutdown()
        end([pid for pid, name in processes(settings) if name == "supervisord"], 0, 30)
        changes.append("stopped every component")
    changes += end_components(settings)
    changes += remove_runtime(settings)
    changes += remove_firewall_rules()
    if settings.address in own_addresses():
        run("ip", "address", "delete", f"{settings.address}/32", "dev", "lo")
        changes.append(f"removed address {settings.address}")
    changes += restore_machine(settings)
    if VOLUMES_LINK.is_symlink() and VOLUMES_LINK.readlink().is_relative_to(settings.directory):
        VOLUMES_LINK.unlink()
        changes.append(f"removed {VOLUMES_LINK}")
    if settings.run.exists():
        remove_tree(settings.run)
        changes.append(f"removed {settings.run}")
    return changes + (delete_set(settings, delete_data) if delete_data else [])


def delete_set(settings: Settings, name: str) -> list[str]:
    """Remove a data set, and everything else with the last one. Raises NodeError if something of it stays."""
    place = settings.directory / "data" / name
    # Without the marker, the next start forgets the pods of the set.
    if data_in_use(settings) == name:
        settings.marker.unlink()
    remove_tree(place)
    if place.exists():
        raise NodeError(f"{place} could not be removed completely")
    if others := data_sets(settings):
        return [f"removed the data set {name}; there is still {', '.join(others)}"]
    remove_tree(settings.directory)
    return [f"removed the data set {name}, the last one, and with it {settings.directory}"]


def import_images(settings: Settings) -> list[str]:
    """Import the images whose key is not yet in containerd. A label on the image carries the key."""
    label = "ansible-mlflow/key"
    ctr = ctr_command(settings)
    wait_for_containerd(ctr)
    listing = run(*ctr, "images", "list")
    present = dict(re.findall(rf"^(\S+) .*{label}=([0-9a-f]+)", listing, re.MULTILINE))
    changes = []
    for image in settings.images:
        if present.get(image["image"]) != image["key"]:
            run(*ctr, "images", "import", "--local", "--no-unpack=false", image["path"] + "/image.tar", timeout=600)
            run(*ctr, "images", "label", image["image"], f"{label}={image['key']}")
            changes.append(f"imported image {image['image']}")
    return changes


def kubectl(settings: Settings, *argv: str) -> str:
    """Output of kubectl. Raises NodeError."""
    binary = settings.kubernetes / "kubectl"
    return run(binary, f"--kubeconfig={settings.kubeconfig}", "--request-timeout=5s", *argv, timeout=15)


def missing(settings: Settings, goal: str) -> str:
    """What is still missing to the goal (`api` or `ready`), empty if nothing is."""
    try:
        kubectl(settings, "get", "--raw=/readyz")
        if goal == "api":
            return ""
        node = json.loads(kubectl(settings, "get", "node", settings.node_name, "-o", "json"))
        conditions = {condition["type"]: condition for condition in node["status"]["conditions"]}
        if conditions["Ready"]["status"] != "True":
            return f"the node is not Ready: {conditions['Ready']['message']}"
        states = Supervisor(settings).states()
        if idle := [name for name in COMPONENTS if states[name]["statename"] != "RUNNING"]:
            return f"{', '.join(idle)} does not run"
        if not fresh_heartbeat(settings):
            return "kubelet has not reported since it started"
        return "" if dns_answers(settings) else f"CoreDNS does not answer at {settings.dns_address}"
    except (NodeError, KeyError, OSError, xmlrpc.client.Error) as error:
        return str(error)


def fresh_heartbeat(settings: Settings) -> bool:
    """Whether kubelet reported since it started: right after a start the API still shows what was true before."""
    lease = json.loads(kubectl(settings, "-n", "kube-node-lease", "get", "lease", settings.node_name, "-o", "json"))
    renewed = time.strptime(lease["spec"]["renewTime"][:19], "%Y-%m-%dT%H:%M:%S")
    return calendar.timegm(renewed) >= Supervisor(settings).states()["kubelet"]["start"]


def dns_answers(settings: Settings) -> bool:
    """Whether CoreDNS resolves the API's own name. Asked for real, as the pod's state may be from before a kill."""
    name = "kubernetes.default.svc.cluster.local"
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    # One question for an A record, with recursion desired.
    question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        try:
            client.sendto(question, (settings.dns_address, 53))
            answer = client.recv(512)
        except OSError:
            return False
    code, answers = answer[3] & 0x0F, int.from_bytes(answer[6:8], "big")
    return code == 0 and answers > 0


def wait(settings: Settings, goal: str, timeout: float) -> None:
    """Wait for the goal. Raises NodeError with what is missing and the failing components' last words."""
    deadline = time.monotonic() + timeout
    while reason := missing(settings, goal):
        if time.monotonic() > deadline:
            raise NodeError(f"not ready after {timeout:g} s: {reason}\n{diagnosis(settings)}")
        time.sleep(0.5)


def diagnosis(settings: Settings) -> str:
    """The state of each component, and the end of the log of those that do not run."""
    try:
        states = Supervisor(settings).states()
    except (OSError, xmlrpc.client.Error) as error:
        return f"supervisord does not answer ({error}); run `make cluster`"
    lines = []
    for name in COMPONENTS:
        process = states.get(name, {"statename": "MISSING", "description": ""})
        lines.append(f"{name:<24} {process['statename']:<9} {process['description']}")
        log = settings.directory / f"logs/{name}.log"
        if process["statename"] != "RUNNING" and log.exists():
            with log.open("rb") as stream:
                stream.seek(max(0, log.stat().st_size - 4000))
                tail = stream.read().decode(errors="replace").splitlines()[-8:]
            lines += [f"    {log}:", *(f"    {line}" for line in tail)]
    return "\n".join(lines)


def status(settings: Settings) -> str:
    """A page about the cluster for a person."""
    lines = [diagnosis(settings), ""]
    try:
        lines.append(kubectl(settings, "get", "nodes", "-o", "wide").strip())
        lines.append("")
        lines.append(kubectl(settings, "get", "pods", "--all-namespaces").strip())
    except NodeError as error:
        lines.append(f"the API does not answer: {error}")
    lines += [
        "",
        f"data sets:  {describe_data(settings)}",
        f"kubeconfig: {settings.kubeconfig}",
        f"kubectl:    {settings.kubernetes}/kubectl",
    ]
    lines += [f"logs:       {settings.directory}/logs"]
    return "\n".join(lines)


def main() -> int:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("check", "up", "images", "wait", "status", "down"))
    parser.add_argument("--settings", default=str(SETTINGS), help="file of settings, - for standard input")
    parser.add_argument("--memory", type=int, default=0, help="check: MiB that have to be free")
    parser.add_argument("--disk", type=int, default=0, help="check: MiB that have to be free")
    parser.add_argument("--for", dest="goal", choices=("api", "ready"), default="ready", help="wait: what for")
    parser.add_argument("--timeout", type=float, default=180, help="wait: seconds")
    parser.add_argument(
        "--dry-run", action=argparse.BooleanOptionalAction, help="up: change nothing, say what would be"
    )
    parser.add_argument("--delete-data", default="", metavar="NAME", help="down: also remove this data set")
    arguments = parser.parse_args()
    changes: list[str] = []
    try:
        settings = Settings.read(arguments.settings)
        if arguments.verb == "status":
            print(status(settings))
            return 0
        if arguments.verb == "check":
            check(settings, arguments.memory, arguments.disk)
        elif arguments.verb == "wait":
            wait(settings, arguments.goal, arguments.timeout)
        else:
            with alone(settings):
                if arguments.verb == "up":
                    changes = up(settings, arguments.dry_run)
                elif arguments.verb == "images":
                    changes = import_images(settings)
                else:
                    changes = down(settings, arguments.delete_data)
    except NodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"changes": changes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
