"""A version of a registered model, with all that it came from: its run, its logged model and their files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from .errors import Error
from .object_store import Store
from .object_store_copy import File, Place
from .registry import DELETED, Registry, is_prompt, pairs

LOGGED_MODEL = re.compile(r"(?:^models:/|/models/)(m-[0-9a-f]{32})(?:/|$)")
PROMPT_TEXT = "mlflow.prompt.text"


@dataclass(frozen=True)
class Side:
    """An environment as a promotion sees it.

    Attributes:
        url: How people reach its server.
        root: Where a server that hands out artifacts keeps them (MLFLOW_ARTIFACTS_DESTINATION).
    """

    environment: str
    url: str
    registry: Registry
    store: Store
    root: str

    def place(self, uri: str) -> Place:
        """Where artifacts are that MLflow says to be at an address.

        :raises Error: it is no bucket.
        """
        if uri.startswith("mlflow-artifacts:"):
            path = re.sub(r"^mlflow-artifacts:(//[^/]*)?/*", "", uri)
            uri = f"{self.root.rstrip('/')}/{path}"
        match = re.fullmatch(r"s3://([^/]+)/(.+)", uri)
        if not match:
            raise Error(
                f"{self.environment} has artifacts at {uri}; expected s3://<bucket>/<path> or mlflow-artifacts:/<path>"
            )
        return Place(self.store, match[1], match[2].rstrip("/"))


@dataclass
class Subject:
    """A version, and what it came from.

    Attributes:
        run, logged: Its run and its logged model, where it has them.
        experiment: The name of their experiment.
        place: Where its files are; None for a prompt, whose text is a tag.
        path: Where that is below the run's artifacts, for a model without a logged one.
        files, run_files: The files by their names.
    """

    version: dict
    tags: dict[str, str]
    run: dict | None = None
    logged: dict | None = None
    experiment: str = ""
    place: Place | None = None
    path: str = ""
    files: dict[str, File] = field(default_factory=dict)
    run_files: dict[str, File] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"version {self.version['version']} of model {self.version['name']}"

    @property
    def run_id(self) -> str:
        return self.run["info"]["run_id"] if self.run else ""

    @property
    def model_id(self) -> str:
        return self.logged["info"]["model_id"] if self.logged else ""

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from every other version, also of a server of the same name that was made anew."""
        made = str(self.version["creation_timestamp"])
        return {
            "version": str(self.version["version"]), "created": made, "run_id": self.run_id, "model_id": self.model_id
        }  # fmt: skip


def subject_of(side: Side, version: dict) -> Subject:
    """What a version came from.

    :raises Error: not all of it is there.
    """
    registry, subject = side.registry, Subject(version, pairs(version.get("tags")))
    where = f"{subject.label} of {side.environment}"
    if version.get("status", "READY") != "READY":
        raise Error(f"{where} is {version['status']}; expected READY")
    if is_prompt(version):
        return subject
    location = registry.location(version)
    found = LOGGED_MODEL.search(location) or LOGGED_MODEL.search(version.get("source") or "")
    if found:
        subject.logged = registry.logged_model(found[1])
        status = subject.logged["info"].get("status") if subject.logged else "deleted"
        if status != "LOGGED_MODEL_READY":
            raise Error(f"{where} is of logged model {found[1]}, which is {status}; expected LOGGED_MODEL_READY")
        location = subject.logged["info"]["artifact_uri"]
    run_id = version.get("run_id") or (subject.logged or {"info": {}})["info"].get("source_run_id")
    if run_id:
        subject.run = registry.run(run_id)
        if subject.run is None or subject.run["info"]["lifecycle_stage"] == DELETED:
            raise Error(f"{where} is of run {run_id}, which is deleted; expected it restored: mlflow runs restore")
        root = side.place(subject.run["info"]["artifact_uri"])
        subject.run_files = root.files()
    elif not subject.logged:
        raise Error(f"{where} has neither a run nor a logged model, but artifacts at {location}; expected one of them")
    owner = subject.logged or subject.run
    subject.experiment = registry.experiment(owner["info"]["experiment_id"])["name"]
    if not subject.logged:
        location = location.replace(f"runs:/{run_id}/", f"{subject.run['info']['artifact_uri']}/", 1)
        subject.path = inside(root, side.place(location), where)
    subject.place = side.place(location)
    subject.files = subject.place.files()
    if not subject.files:
        raise Error(f"{where} has no artifacts: there is nothing below {subject.place.url}; expected its files")
    return subject


def inside(root: Place, place: Place, where: str) -> str:
    """The path of a place below another one.

    :raises Error: it is elsewhere.
    """
    if place.bucket != root.bucket or not f"{place.prefix}/".startswith(f"{root.prefix}/"):
        raise Error(f"{where} has its artifacts at {place.url}; expected them among those of its run, {root.url}")
    return place.prefix.removeprefix(root.prefix).lstrip("/")


def manifest(digest_of: dict[str, str]) -> str:
    """One hash for several files, as `find -type f | sort | xargs sha256sum | sha256sum` prints it in their folder."""
    lines = "".join(f"{digest}  ./{name}\n" for name, digest in sorted(digest_of.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def text_digest(tags: dict[str, str]) -> str:
    """The hash of a prompt."""
    return hashlib.sha256(tags.get(PROMPT_TEXT, "").encode()).hexdigest()
