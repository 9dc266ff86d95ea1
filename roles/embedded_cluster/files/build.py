#!/usr/bin/env python3
"""Builds the parts of the embedded cluster into a cache outside the checkout.

A part is named by its content: <cache>/<part>-<key>, where the key is a digest of its input files, its pinned
versions and the parts it is made from. A part that exists is never built again, by whatever checkout. A part is
built in a temporary directory below a lock and renamed when it is complete, so an interrupted build or two builds
at once leave nothing half done.

Only the standard library is used, so that it runs before anything is installed:  build.py --list;  build.py all
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
KUBERNETES_VERSION = "1.36.3"
CONTAINERD_VERSION = "v2.3.4"
COREDNS_VERSION = "v1.14.7"
KUBE_ROUTER_VERSION = "v2.1.0"
# MinIO has been distributed as source since 2025. The pseudo-version is the commit of the release in the image's tag.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
MINIO_TAG = "2026-02-12"
VERSITYGW_VERSION = "v1.8.0"
ARGOCD_VERSION = "v3.2.6"
EXTERNAL_SECRETS_VERSION = "v0.16.2"
METRICS_SERVER_VERSION = "v0.9.0"
CONTOUR_VERSION = "v1.33.8"
PROMETHEUS_OPERATOR_VERSION = "v0.85.0"
SUPERVISOR_VERSION = "4.3.0"
DEBIAN_SUITE = "bookworm"
POSTGRES_MAJOR = "15"
MLFLOW_VERSION = "3.17.2"

BUILD_TIMEOUT = 45 * 60
HEARTBEAT = 15
KEEP_UNUSED = 30 * 24 * 3600
GO_FLAGS = ["-trimpath", "-ldflags"]
CA_BUNDLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class BuildError(Exception):
    """A build that failed, with the text a person needs."""


@dataclass(frozen=True)
class Part:
    """One thing to build.

    minutes is what a first build took on two cores; recipe fills the directory it is given. The cluster does without
    what is only_tests.
    """

    name: str
    minutes: float
    recipe: Callable[[Run], None]
    inputs: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    image: str = ""
    only_tests: bool = False


@dataclass
class Run:
    """A build under way: where it writes, what it is made from, and how it starts commands."""

    part: Part
    directory: Path
    scratch: Path
    log: Path
    made: dict[str, Path]
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One line of progress on the terminal."""
        seconds = int(time.monotonic() - self.started)
        print(f"  {self.part.name:<22} {seconds // 60:2d}:{seconds % 60:02d}  {text}", flush=True)

    def command(self, *argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        """Run a command into the log; every 15 s say what it printed last.

        Raises BuildError with the end of the log if it fails or takes longer than the build may.
        """
        words = [str(word) for word in argv]
        lines: queue.Queue[str | None] = queue.Queue()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(words)}\n")
            log.flush()
            process = subprocess.Popen(  # noqa: S603
                words,
                cwd=cwd or self.scratch,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            reader = threading.Thread(target=self._read, args=(process, lines), daemon=True)
            reader.start()
            self._follow(process, lines, log)
        if process.wait() != 0:
            raise BuildError(f"{words[0]} exited with {process.returncode}")

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    def _follow(self, process: subprocess.Popen[str], lines: queue.Queue[str | None], log: object) -> None:
        count, last, said = 0, "", time.monotonic()
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                line = ""
            if line is None:
                return
            if line:
                log.write(line)  # type: ignore[attr-defined]
                log.flush()  # type: ignore[attr-defined]
                count, last = count + 1, line.strip() or last
            now = time.monotonic()
            if now - self.started > BUILD_TIMEOUT:
                process.kill()
                raise BuildError(f"not finished after {BUILD_TIMEOUT // 60} minutes")
            if now - said >= HEARTBEAT:
                said = now
                self.say(f"{count} lines, last: {last[:70]}" if count else "nothing printed yet")


def ca_bundle() -> Path:
    """The certificates this machine trusts, which may be more than Debian's own (a company's proxy, say)."""
    for variable in CA_BUNDLES:
        path = Path(os.environ.get(variable, ""))
        if path.is_file():
            return path
    return Path("/etc/ssl/certs/ca-certificates.crt")


def go_environment(run: Run) -> dict[str, str]:
    """The environment of a Go build. GOFLAGS is set so that a user's own flags do not leak into what is cached."""
    if not shutil.which("go"):
        raise BuildError("go is not on the PATH: install Go 1.26 from https://go.dev/dl")
    return {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOBIN": str(run.directory), "GOWORK": "off"}


def build_kubernetes(run: Run) -> None:
    """The five Kubernetes components, kubectl and etcd, from one go.mod."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    package = "k8s.io/component-base/version"
    values = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = " ".join(["-s -w", *(f"-X {package}.{name}={value}" for name, value in values.items())])
    source = HERE / "kubernetes"
    run.command(
        "go", "build", "-v", *GO_FLAGS, flags, "-o", f"{run.directory}/", "tool", cwd=source, env=go_environment(run)
    )
    (run.directory / "server").rename(run.directory / "etcd")


def go_install(*packages: str) -> Callable[[Run], None]:
    """A recipe that installs the commands of one Go module."""

    def recipe(run: Run) -> None:
        run.command("go", "install", "-v", *GO_FLAGS, "-s -w", *packages, env=go_environment(run))

    return recipe


def go_module(run: Run, module: str) -> Path:
    """The source of a Go module, in Go's own cache, which nobody may write to."""
    run.command("go", "mod", "download", module, env=go_environment(run))
    where = ["go", "env", "GOMODCACHE"]
    cache = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return Path(cache, module)


def go_build(module: str, package: str, *manifests: str) -> Callable[[Run], None]:
    """A recipe that builds a command as its own module's go.mod says, which `go install` refuses where it replaces any.

    The command gets the part's name; the files that manifests names by patterns come along in the folder crds.
    """

    def recipe(run: Run) -> None:
        source, binary = go_module(run, module), run.directory / run.part.name
        flags = [*GO_FLAGS, "-s -w", "-o", binary]
        run.command("go", "build", "-v", *flags, package, cwd=source, env=go_environment(run))
        crds = run.directory / "crds"
        crds.mkdir()
        for file in (path for pattern in manifests for path in source.glob(pattern)):
            shutil.copyfile(file, crds / file.name)

    return recipe


def build_prometheus(run: Run) -> None:
    """Debian's Prometheus, unpacked and not installed, so that none is started; with the operator's kinds as crds."""
    run.command("apt-get", "update", "-qq")
    run.command("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "prometheus")
    [package] = run.scratch.glob("prometheus_*.deb")
    run.command("dpkg-deb", "--extract", package, run.scratch)
    for name in ("prometheus", "promtool"):
        (run.scratch / "usr/bin" / name).rename(run.directory / name)
    module = f"github.com/prometheus-operator/prometheus-operator@{PROMETHEUS_OPERATOR_VERSION}"
    source = go_module(run, module) / "example/prometheus-operator-crd"
    (run.directory / "crds").mkdir()
    for name in ("servicemonitors", "prometheusrules"):
        shutil.copyfile(source / f"monitoring.coreos.com_{name}.yaml", run.directory / f"crds/{name}.yaml")


def build_supervisor(run: Run) -> None:
    """supervisord in a virtual environment of Debian's Python: it has to outlive this checkout and its .venv."""
    run.command("/usr/bin/python3", "-m", "venv", run.directory)
    pip = [run.directory / "bin/python", "-m", "pip", "--disable-pip-version-check", "--cert", str(ca_bundle())]
    run.command(*pip, "install", "--no-deps", f"supervisor=={SUPERVISOR_VERSION}")


def build_base(run: Run) -> None:
    """A minimal Debian as an image: what the other images are built on where no registry can be reached."""
    tar = run.scratch / "base.tar"
    packages = "ca-certificates,python3,python3-venv"
    run.command("mmdebstrap", "--variant=minbase", f"--include={packages}", DEBIAN_SUITE, tar)
    context = run.scratch / "context"
    context.mkdir()
    tar.rename(context / "base.tar")
    (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
    build_image(run, context)


def build_image(run: Run, context: Path, **arguments: str) -> None:
    """Build a Containerfile with buildah and save the image as an archive.

    buildah gets a storage of its own, which is removed with the scratch directory: no mount and no image stays in
    the system's storage. The chroot isolation needs neither runc nor a network namespace.
    """
    storage, runroot = run.scratch / "storage", run.scratch / "run"
    # Overlay cannot be stacked on an overlay, which is what a container's root usually is.
    driver = "vfs" if file_system(run.scratch) == "overlay" else "overlay"
    buildah = ["buildah", "--root", storage, "--runroot", runroot, "--storage-driver", driver]
    if "base" in run.part.needs:
        run.command(*buildah, "pull", f"docker-archive:{run.made['base']}/image.tar")
        arguments["BASE"] = "localhost/base:" + DEBIAN_SUITE
    settings = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    # pip inside the build trusts what this machine trusts and uses its index; neither ends up in a layer.
    index = {"cert": "/run/ca.crt", "index-url": os.environ.get("PIP_INDEX_URL", "")}
    lines = [f"{name} = {value}" for name, value in index.items() if value]
    (run.scratch / "pip.conf").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    secrets = ["--secret", f"id=pip.conf,src={run.scratch}/pip.conf", "--secret", f"id=ca.crt,src={ca_bundle()}"]
    try:
        run.command(
            *[*buildah, "build", "--isolation", "chroot", "--network", "host", "--layers=false"],
            *[*settings, *secrets, "--file", context / "Containerfile", "--tag", run.part.image, context],
        )
        archive = f"docker-archive:{run.directory}/image.tar:{run.part.image}"
        run.command(*buildah, "push", run.part.image, archive)
    finally:
        unmount_below(run.scratch)


def mounts() -> list[tuple[str, str]]:
    """Mount points and the types of their file systems, in the order of mounting."""
    fields = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    return [(point, kind) for _, point, kind, *_ in fields]


def file_system(path: Path) -> str:
    """The type of the file system that a path is on."""
    holding = [(len(point), kind) for point, kind in mounts() if path.is_relative_to(point)]
    return max(holding, key=lambda entry: entry[0])[1]


def unmount_below(directory: Path) -> None:
    """Unmount whatever an interrupted buildah left mounted, the last first."""
    for point, _ in reversed(mounts()):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False)  # noqa: S603, S607


def containerfile(name: str, *binaries: str, **arguments: str) -> Callable[[Run], None]:
    """A recipe for images/<name>/Containerfile; binaries are `part/file` from earlier builds, put into its context."""

    def recipe(run: Run) -> None:
        context = run.scratch / "context"
        shutil.copytree(HERE / "images" / name, context)
        for binary in binaries:
            part, file = binary.split("/")
            shutil.copy(run.made[part] / file, context / file)
        shutil.copy(ca_bundle(), context / "ca-certificates.crt")
        build_image(run, context, **arguments)

    return recipe


def build_pause(run: Run) -> None:
    """The container that holds a pod's namespaces: our own few lines, as the usual one is only in a registry."""
    context = run.scratch / "context"
    context.mkdir()
    source = HERE / "images/pause"
    shutil.copy(source / "Containerfile", context)
    environment = {**go_environment(run), "GO111MODULE": "off"}
    run.command("go", "build", *GO_FLAGS, "-s -w", "-o", context / "pause", source / "main.go", env=environment)
    build_image(run, context)


def mlflow(version: str) -> Part:
    """The MLflow image of a version; its pinned requirements are images/mlflow/requirements-<version>.txt."""
    inputs = ("images/mlflow/Containerfile", f"images/mlflow/requirements-{version}.txt")
    recipe = containerfile("mlflow", MLFLOW_VERSION=version)
    return Part(f"image-mlflow-{version}", 2, recipe, inputs, needs=("base",), image=f"localhost/mlflow:{version}")


def parts(mlflow_versions: list[str]) -> dict[str, Part]:
    """Every part, in the order of building."""
    containerd = "github.com/containerd/containerd/v2/cmd/"
    commands = [f"{containerd}{c}@{CONTAINERD_VERSION}" for c in ("containerd", "containerd-shim-runc-v2", "ctr")]
    coredns, minio = f"github.com/coredns/coredns@{COREDNS_VERSION}", f"github.com/minio/minio@{MINIO_VERSION}"
    router = f"github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@{KUBE_ROUTER_VERSION}"
    versitygw = f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW_VERSION}"
    argocd = f"github.com/argoproj/argo-cd/v3@{ARGOCD_VERSION}"
    secrets = f"github.com/external-secrets/external-secrets@{EXTERNAL_SECRETS_VERSION}"
    metrics = f"sigs.k8s.io/metrics-server/cmd/metrics-server@{METRICS_SERVER_VERSION}"
    contour = f"github.com/projectcontour/contour@{CONTOUR_VERSION}"
    # Contour's own kinds, and the Gateway API's as this release serves them.
    contour_crds = ("examples/contour/01-crds.yaml", "examples/gateway/00-crds.yaml")
    image = "localhost/{}:{}".format
    listed = [
        Part("supervisor", 0.2, build_supervisor, pins=(SUPERVISOR_VERSION,)),
        Part("kubernetes", 7, build_kubernetes, ("kubernetes/go.mod", "kubernetes/go.sum"), (KUBERNETES_VERSION,)),
        Part("containerd", 1, go_install(*commands), pins=tuple(commands)),
        Part("coredns", 2, go_install(coredns), pins=(coredns,)),
        Part("kube-router", 2, go_install(router), pins=(router,)),
        Part("minio", 3, go_install(minio), pins=(minio,)),
        Part("base", 2, build_base, pins=(DEBIAN_SUITE,), image=image("base", DEBIAN_SUITE)),
        Part(
            "image-pause",
            0.2,
            build_pause,
            ("images/pause/Containerfile", "images/pause/main.go"),
            image=image("pause", "1"),
        ),
        Part(
            "image-coredns",
            0.2,
            containerfile("coredns", "coredns/coredns"),
            ("images/coredns/Containerfile",),
            needs=("coredns",),
            image=image("coredns", COREDNS_VERSION.removeprefix("v")),
        ),
        Part(
            "image-minio",
            0.3,
            containerfile("minio", "minio/minio"),
            ("images/minio/Containerfile",),
            needs=("minio",),
            image=image("minio", MINIO_TAG),
        ),
        Part(
            "image-postgres",
            1,
            containerfile("postgres", POSTGRES_MAJOR=POSTGRES_MAJOR),
            ("images/postgres/Containerfile", "images/postgres/entrypoint.sh"),
            (POSTGRES_MAJOR,),
            needs=("base",),
            image=image("postgres", POSTGRES_MAJOR),
        ),
        *map(mlflow, mlflow_versions),
        Part("versitygw", 1, go_install(versitygw), pins=(versitygw,), only_tests=True),
        Part("argocd", 4, go_build(argocd, "./cmd", "manifests/crds/*.yaml"), pins=(argocd,), only_tests=True),
        Part(
            "external-secrets", 3, go_build(secrets, ".", "config/crds/bases/*.yaml"), pins=(secrets,), only_tests=True
        ),
        Part("metrics-server", 3, go_install(metrics), pins=(metrics,), only_tests=True),
        Part("contour", 2, go_build(contour, "./cmd/contour", *contour_crds), pins=(contour,), only_tests=True),
        Part("prometheus", 0.5, build_prometheus, pins=(DEBIAN_SUITE, PROMETHEUS_OPERATOR_VERSION), only_tests=True),
    ]
    return {part.name: part for part in listed}


def keys(known: dict[str, Part]) -> dict[str, str]:
    """The key of every part. Parts come after what they need, so one pass is enough."""
    result: dict[str, str] = {}
    for part in known.values():
        digest = hashlib.sha256()
        for word in (part.name, platform.machine(), *part.pins, part.image, *(result[need] for need in part.needs)):
            digest.update(f"{word}\0".encode())
        for name in part.inputs:
            path = HERE / name
            if not path.is_file():
                raise BuildError(f"{part.name}: {path} does not exist")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        result[part.name] = digest.hexdigest()[:16]
    return result


def cache_directory() -> Path:
    """Where builds are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ansible-mlflow"


def make(part: Part, made: dict[str, Path], target: Path) -> None:
    """Build one part unless another process did meanwhile. Raises BuildError."""
    cache = target.parent
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{part.name}.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  {part.name}: another process is building it, waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        # Below the lock, a temporary directory of this part can only be what a killed build left.
        for stale in cache.glob(f".building-{part.name}-*"):
            unmount_below(stale)
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".building-{part.name}-", dir=cache))
        log = cache / f"{part.name}.log"
        log.write_text("", encoding="utf-8")
        try:
            directory, scratch = work / "result", work / "scratch"
            directory.mkdir()
            scratch.mkdir()
            run = Run(part, directory, scratch, log, made)
            run.say(f"building, about {part.minutes:g} min on two cores; log: {log}")
            part.recipe(run)
            directory.rename(target)
            run.say("built")
            prune(part.name, target)
        except BuildError as error:
            tail = "".join(f"    {line}\n" for line in log.read_text(encoding="utf-8").splitlines()[-30:])
            raise BuildError(f"building {part.name} failed: {error}; the end of {log}:\n{tail}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def prune(name: str, target: Path) -> None:
    """Remove builds of the part that no checkout has used for 30 days."""
    for other in target.parent.glob(f"{name}-{'[0-9a-f]' * 16}"):
        if other != target and time.time() - other.stat().st_mtime > KEEP_UNUSED:
            shutil.rmtree(other, ignore_errors=True)


def closure(names: list[str], known: dict[str, Part]) -> list[Part]:
    """The named parts and everything they need, in the order of building."""
    wanted = set(names)
    for part in reversed(known.values()):
        if part.name in wanted:
            wanted.update(part.needs)
    return [part for part in known.values() if part.name in wanted]


def main() -> int:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts to build; `all` for those of the cluster, `tests` for the rest")
    parser.add_argument("--list", action="store_true", help="print every part as JSON: path, minutes, image, present")
    parser.add_argument("--check", action="store_true", help="build nothing; exit 1 if a named part is missing")
    parser.add_argument("--mlflow-version", action="append", help="versions of the MLflow image (repeatable)")
    arguments = parser.parse_args()
    try:
        known = parts(arguments.mlflow_version or [MLFLOW_VERSION])
        key_of = keys(known)
        cache = cache_directory()
        made = {name: cache / f"{name}-{key}" for name, key in key_of.items()}
        if arguments.list:
            # Whoever asks for the list uses what is in it: the role does, at every run.
            for path in made.values():
                with contextlib.suppress(OSError):
                    os.utime(path)
            table = [
                {
                    "name": part.name,
                    "path": str(made[part.name]),
                    "key": key_of[part.name],
                    "minutes": part.minutes,
                    "image": part.image,
                    "present": made[part.name].exists(),
                    "only_tests": part.only_tests,
                }
                for part in known.values()
            ]
            # The base is only built upon; pods never use it.
            images = [row for row in table if row["image"] and row["name"] != "base"]
            images = [{name: row[name] for name in ("image", "key", "path")} for row in images]
            print(json.dumps({"parts": table, "images": images}))
            return 0
        cluster = [part.name for part in known.values() if not part.only_tests]
        tests = [part.name for part in known.values() if part.only_tests]
        groups = {"all": cluster, "tests": tests}
        names = [name for given in arguments.names for name in groups.get(given, [given])]
        if unknown := set(names) - set(known):
            raise BuildError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        if arguments.check:
            return int(not all(made[name].exists() for name in names))
        for part in closure(names, known):
            if not made[part.name].exists():
                make(part, made, made[part.name])
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
