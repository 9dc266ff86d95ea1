"""A registered model's version, copied from one environment's MLflow to another's, with all that it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .errors import Error
from .model_version import Side, Subject, manifest, subject_of, text_digest
from .object_store_bucket import Outcome
from .object_store_copy import Copier, digests, mib
from .registry import DELETED, entries, pairs

MEASURED = ("key", "value", "timestamp", "step")
# What names other runs, which are not copied; MLflow writes the last one anew.
NOT_CARRIED = ("mlflow.parentRunId", "mlflow.rootRunId", "mlflow.modelVersions")


@dataclass(frozen=True)
class Wanted:
    """What is to be promoted, and what the target's version gets.

    Attributes:
        version, version_alias: Which version: its number, or an alias that it has.
        alias: What the version is to have in the target; empty for none.
        notes: More to write down about where it came from.
    """

    model: str
    version: str
    version_alias: str
    alias: str
    notes: dict[str, str] = field(default_factory=dict)


def promote(
    source: Side, target: Side, wanted: Wanted, check_mode: bool, say: Callable[[str], None]
) -> tuple[Outcome, dict | None]:
    """Bring a version of a registered model from one environment into another.

    :param say: takes a line about how far it is.
    :returns: what was changed, and the target's version; None for one that only a run without check mode makes.
    :raises Error: it cannot be promoted, or a server refuses; what was done by then stays, and the next run goes on.
    """
    source.registry.check()
    target.registry.check()
    version = source.registry.version(wanted.model, wanted.version, wanted.version_alias)
    subject = subject_of(source, version)
    work = Work(source, target, subject, wanted, check_mode, say)
    there = work.promoted()
    if there:
        work.compare(there)
    else:
        there = work.bring()
    work.name(there)
    return work.outcome, there


class Work:
    """One promotion of one version."""

    def __init__(self, source: Side, target: Side, subject: Subject, wanted: Wanted, check_mode: bool, say: Callable):
        self.source, self.target, self.subject, self.wanted = source, target, subject, wanted
        self.registry = target.registry
        self.check_mode, self.say = check_mode, say
        self.outcome = Outcome()
        self._of = f"{subject.label} of {source.environment}"
        # By name: a chain of promotions leaves the marks of each.
        self._key = f"promoted_from.{source.environment}."

    # -- What is there already --------------------------------------------------------------------------------------

    def promoted(self) -> dict | None:
        """The target's version that was made of this one, or None."""
        model = self.registry.model(self.wanted.model)
        if model is None:
            return None
        marks = {self._key + name: value for name, value in self.subject.identity.items()}
        for version in self.registry.versions(model):
            if marks.items() <= pairs(version.get("tags")).items():
                return version
        return None

    def compare(self, version: dict) -> None:
        """Refuse a promoted version that is not what it was made of any more.

        :raises Error: other bytes, or something of it is gone.
        """
        there = subject_of(self.target, version)
        label = f"{there.label} of {self.target.environment}"
        sizes = [{name: file.size for name, file in each.files.items()} for each in (self.subject, there)]
        if sizes[0] != sizes[1]:
            raise Error(
                f"{label} was promoted from {self._of}, and has other files: {differing(*sizes)}; expected the same"
            )
        total = mib(sum(sizes[0].values()))
        self.say(f"comparing {len(there.files)} files, {total} MiB, with those that are there")
        both = {name: digests(file, there.files[name]) for name, file in self.subject.files.items()}
        if self.subject.place:
            here, now = (manifest({name: pair[side] for name, pair in both.items()}) for side in (0, 1))
        else:
            here, now = text_digest(self.subject.tags), text_digest(there.tags)
        noted = there.tags.get(self._key + "sha256", "")
        if not here == now == noted:
            changed = self._of if now == noted else label
            raise Error(
                f"{label} was promoted from {self._of} with the SHA-256 {noted}; now it has {now}, and the other "
                f"{here}: {changed} was changed since; expected the same bytes in both"
            )

    # -- What is made -----------------------------------------------------------------------------------------------

    def bring(self) -> dict | None:
        """Make the version in the target with all that it came from; what a run before has made is taken on.

        :returns: the version; None in check mode.
        """
        subject, registry = self.subject, self.registry
        model = registry.model(self.wanted.model)
        run = logged = None
        digest = text_digest(subject.tags)
        source = subject.version.get("source") or ""
        if subject.place:
            experiment = self._experiment()
            run = self._run(experiment) if subject.run else None
            experiment = run["info"]["experiment_id"] if run else experiment
            logged = self._logged_model(experiment, run) if subject.logged else None
            digest = self._files(run, logged)
            if not self.check_mode:
                self._finish(run, logged)
                source = f"models:/{logged['info']['model_id']}" if logged else ""
                source = source or f"{run['info']['artifact_uri']}/{subject.path}".rstrip("/")
        if model is None:
            self._note(f"registered model {self.wanted.model}", "registered model", self.wanted.model)
            if not self.check_mode:
                registry.make_model(self.wanted.model, self.source.registry.model(self.wanted.model))
        tags = {key: value for key, value in subject.tags.items() if key not in NOT_CARRIED} | self._marks(digest)
        if self.check_mode:
            self._note(f"a new version of model {self.wanted.model}, of {self._of}", "version", "new")
            return None
        # Another run may have been at it at the same time.
        made = self.promoted()
        if made:
            return made
        version = registry.make_version(
            name=self.wanted.model,
            source=source,
            tags=entries(tags),
            description=subject.version.get("description") or "",
            **({"run_id": run["info"]["run_id"]} if run else {}),
            **({"model_id": logged["info"]["model_id"]} if logged else {}),
        )
        self._note(f"version {version} of model {self.wanted.model}, of {self._of}", "version", version)
        return registry.version(self.wanted.model, version, "")

    def _marks(self, digest: str) -> dict[str, str]:
        """Where it came from, as tags."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        marks = {"url": self.source.url, **self.wanted.notes, **self.subject.identity, "sha256": digest, "at": now}
        return {self._key + name: value for name, value in marks.items()}

    def _experiment(self) -> str:
        name = self.subject.experiment
        found = self.registry.experiment_called(name)
        if found and found["lifecycle_stage"] == DELETED:
            raise Error(
                f"experiment {name} of {self.target.environment}, to which the run of {self._of} belongs, is deleted; "
                f"expected it to be restored (mlflow experiments restore), or to be deleted for good (mlflow gc)"
            )
        if found:
            return found["experiment_id"]
        self._note(f"experiment {name}", "experiment", name)
        return "" if self.check_mode else self.registry.make_experiment(name)

    def _run(self, experiment: str) -> dict | None:
        subject, registry = self.subject, self.registry
        key = self._key + "run_id"
        run = registry.run_with_tag(registry.experiment_ids(), key, subject.run_id)
        if run and run["info"]["lifecycle_stage"] == DELETED:
            raise Error(
                f"run {run['info']['run_id']} of {self.target.environment}, which was promoted from run "
                f"{subject.run_id} of {self.source.environment}, is deleted; expected it to be restored (mlflow runs "
                f"restore), or to be deleted for good (mlflow gc)"
            )
        if run is None:
            name = subject.run["info"].get("run_name") or subject.run_id
            self._note(f"run {name}, of run {subject.run_id} of {self.source.environment}", "run", name)
            if self.check_mode:
                return None
            mark = {key: subject.run_id, self._key + "url": self.source.url}
            run = registry.make_run(experiment, subject.run["info"], mark)
        if not self.check_mode:
            self._log(run)
        return run

    def _log(self, run: dict) -> None:
        """Log parameters, metrics, tags and datasets; what is there already stays as it is."""
        subject, run_id = self.subject, run["info"]["run_id"]
        data = subject.run.get("data") or {}
        tags = {key: value for key, value in pairs(data.get("tags")).items() if key not in NOT_CARRIED}
        present = pairs((run.get("data") or {}).get("tags"))
        datasets = (subject.run.get("inputs") or {}).get("dataset_inputs") or []
        if datasets:
            self.registry.log_inputs(run_id, datasets, [])
        new = {key: value for key, value in tags.items() if key not in present}
        params = [{"key": entry["key"], "value": entry.get("value", "")} for entry in data.get("params") or []]
        self.registry.log(run_id, params, new)
        for metric in dict.fromkeys(entry["key"] for entry in data.get("metrics") or []):
            history = self.source.registry.history(subject.run_id, metric)
            self.registry.log_metrics(run_id, [taken(entry, MEASURED) for entry in history])

    def _logged_model(self, experiment: str, run: dict | None) -> dict | None:
        subject, registry = self.subject, self.registry
        info, data = subject.logged["info"], subject.logged.get("data") or {}
        key = self._key + "model_id"
        found = registry.logged_model_with_tag([experiment], key, subject.model_id) if experiment else None
        if found is None:
            self._note(f"logged model {info['name']}, of {subject.model_id} of {self.source.environment}",
                       "logged model", info["name"])  # fmt: skip
            if self.check_mode:
                return None
            tags = {key: value for key, value in pairs(info.get("tags")).items() if key not in NOT_CARRIED}
            found = registry.make_logged_model(
                experiment_id=experiment,
                name=info["name"],
                model_type=info.get("model_type") or "",
                params=data.get("params") or [],
                tags=entries(tags | {key: subject.model_id}),
                **({"source_run_id": run["info"]["run_id"]} if run else {}),
            )
        # A model is measured in runs; of those, only its own is in the target.
        if run and not self.check_mode:
            there = [taken(entry, MEASURED) for entry in (found.get("data") or {}).get("metrics") or []]
            measured = [
                taken(entry, (*MEASURED, "dataset_name", "dataset_digest")) | {"model_id": found["info"]["model_id"]}
                for entry in data.get("metrics") or []
                if entry.get("run_id") == subject.run_id and taken(entry, MEASURED) not in there
            ]
            registry.log_metrics(run["info"]["run_id"], measured)
        return found

    def _files(self, run: dict | None, logged: dict | None) -> str:
        """Copy the files of the run and of the model; the model's hash, which check mode does not know."""
        subject = self.subject
        wanted = {("run", name): file for name, file in subject.run_files.items()}
        if subject.logged:
            wanted |= {("model", name): file for name, file in subject.files.items()}
        places = {
            "run": self.target.place(run["info"]["artifact_uri"]) if run else None,
            "model": self.target.place(logged["info"]["artifact_uri"]) if logged else None,
        }
        present = {
            (kind, name): file for kind, place in places.items() if place for name, file in place.files().items()
        }
        total = sum(file.size for file in wanted.values())
        missing = [key for key, file in wanted.items() if key not in present or present[key].size != file.size]
        left = sum(wanted[key].size for key in missing)
        text = f"{len(missing)} files, {left} bytes" if missing else ""
        if missing:
            self._note(f"{text} of {len(wanted)} files, {total} bytes", "files", text)
        if self.check_mode:
            return ""
        copier = Copier(self.say, total)
        self.say(f"copying {len(wanted)} files, {mib(total)} MiB, of which {mib(total - left)} MiB are there")
        copied = {key: copier.copy(file, places[key[0]], present.get(key)) for key, file in sorted(wanted.items())}
        self.say(
            f"copied and read back {len(wanted)} files: {mib(copier.sent)} MiB were sent, and {mib(copier.resumed)} "
            f"MiB of files in parts had been sent before"
        )
        kind, below = ("model", "") if subject.logged else ("run", f"{subject.path}/".lstrip("/"))
        return manifest(
            {name.removeprefix(below): digest for (of, name), digest in copied.items()
             if of == kind and name.startswith(below)}
        )  # fmt: skip

    def _finish(self, run: dict | None, logged: dict | None) -> None:
        """Join the run and its model, and say that both are complete."""
        subject, registry = self.subject, self.registry
        if logged:
            registry.finish_logged_model(logged["info"]["model_id"])
        if run is None:
            return
        run_id = run["info"]["run_id"]
        if logged:
            self._join(run, logged["info"]["model_id"])
        registry.end_run(run_id, subject.run["info"])

    def _join(self, run: dict, model_id: str) -> None:
        run_id, subject = run["info"]["run_id"], self.subject

        def of(owner: dict, kind: str, identifier: str) -> list[dict[str, Any]]:
            found = (owner.get(f"{kind}s") or {}).get(f"model_{kind}s") or []
            return [entry for entry in found if entry["model_id"] == identifier]

        outputs = of(subject.run, "output", subject.model_id)
        if outputs and not of(run, "output", model_id):
            step = outputs[0].get("step", 0)
            self.registry.log_outputs(run_id, [{"model_id": model_id, "step": step}])
        if of(subject.run, "input", subject.model_id) and not of(run, "input", model_id):
            self.registry.log_inputs(run_id, [], [{"model_id": model_id}])

    # -- The alias --------------------------------------------------------------------------------------------------

    def name(self, version: dict | None) -> None:
        """Give the version the alias that is wanted, if it has not got it."""
        alias = self.wanted.alias
        if not alias:
            return
        model = self.registry.model(self.wanted.model) or {}
        held = {entry["alias"]: str(entry["version"]) for entry in model.get("aliases") or []}.get(alias)
        number = str(version["version"]) if version else "new"
        if held == number:
            return
        was = f", which version {held} had" if held else ""
        sentence = f"gave version {number} of model {self.wanted.model} in {self.target.environment} the alias {alias}"
        self.outcome.note(sentence + was, f"alias {alias}", held or "absent", number)
        if not self.check_mode:
            self.registry.set_alias(self.wanted.model, alias, number)

    def _note(self, what: str, kind: str, value: str) -> None:
        verb = "copied" if kind == "files" else "made"
        self.outcome.note(f"{verb} in {self.target.environment}: {what}", kind, "absent", value)


def taken(entry: dict, names: tuple[str, ...]) -> dict[str, Any]:
    """Some of what an answer says."""
    return {name: entry[name] for name in names if name in entry}


def differing(here: dict[str, int], there: dict[str, int]) -> str:
    """Some names of files that only one of two has, or with another size."""
    names = sorted(name for name in set(here) | set(there) if here.get(name) != there.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
