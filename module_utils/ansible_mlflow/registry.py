"""The runs, logged models and registered models of one MLflow server, by its HTTP API."""

from __future__ import annotations

from collections.abc import Iterator

from .access_server import Server
from .errors import Error, one_line

# What MLflow takes in one request, and gives in one answer.
MOST_METRICS = 1000
MOST_PARAMS = 100
MOST_TAGS = 100
PAGE = 1000
SHOWN = 5
DELETED = "deleted"
# What MLflow keeps as a registered model too, with its text in a tag.
PROMPT = "mlflow.prompt.is_prompt"


class Registry:
    """One environment's MLflow, as its administrator sees it.

    :param server: with the login of its administrator.
    """

    def __init__(self, server: Server, environment: str):
        self.server, self.environment = server, environment

    def check(self) -> None:
        """Refuse a login that is wrong, or that may not see and write everything.

        :raises Error: naming the variable.
        """
        name = self.server.login[0]
        status, answer = self.server.send("GET", "2.0/mlflow/users/get", {"username": name})
        if status == 401:
            raise Error(
                f"{self.server.url}: MLflow does not accept mlflow_environment_secrets.admin_password of "
                f"{self.environment} for {name}; expected the password that it has (docs/access.md)"
            )
        if status >= 400:
            told = one_line(answer.get("message") or "", 300)
            raise Error(f"{self.server.url}: MLflow refused to tell who {name} is ({status}): {told}")
        if not answer["user"]["is_admin"]:
            raise Error(
                f"{self.server.url}: user {name} (mlflow_server_admin_username of {self.environment}) is no "
                f"administrator of MLflow; expected one, for others see and write only a part"
            )

    def find(self, path: str, **values) -> dict | None:
        """The answer to a question, or None where there is no such thing.

        :raises Error: with MLflow's own sentence.
        """
        status, answer = self.server.send("GET", path, values)
        if status == 404:
            return None
        if status >= 400:
            told = one_line(answer.get("message") or "", 300)
            raise Error(f"{self.server.url}: MLflow refused GET /api/{path} ({status}): {told}")
        return answer

    def pages(self, method: str, path: str, key: str, **values) -> Iterator[dict]:
        """The entries of an answer that comes in pages."""
        token = ""
        while True:
            more = {"page_token": token} if token else {}
            answer = self.server.ask(method, path, max_results=PAGE, **values, **more)
            yield from answer.get(key) or []
            token = answer.get("next_page_token") or ""
            if not token:
                return

    # -- Registered models ------------------------------------------------------------------------------------------

    def model(self, name: str) -> dict | None:
        """A registered model, without its versions."""
        found = self.find("2.0/mlflow/registered-models/get", name=name)
        return found and found["registered_model"]

    def version(self, name: str, version: str, alias: str) -> dict:
        """The version of a registered model that has a number or an alias.

        :raises Error: there is none, with those that there are.
        """
        model = self.model(name)
        if model is None:
            found = self.pages("GET", "2.0/mlflow/registered-models/search", "registered_models")
            there = [entry["name"] for entry in found]
            raise Error(
                f"mlflow_model_promotion_model is {name}, and {self.environment} has no registered model of that "
                f"name; expected one of {few(there)}"
            )
        if alias:
            aliases = {entry["alias"]: entry["version"] for entry in model.get("aliases") or []}
            if alias not in aliases:
                raise Error(
                    f"mlflow_model_promotion_version_alias is {alias}, and model {name} of {self.environment} has no "
                    f"such alias; expected one of {few(sorted(aliases))}"
                )
            version = str(aliases[alias])
        for entry in (versions := self.versions(model)):
            if str(entry["version"]) == version:
                return entry
        raise Error(
            f"mlflow_model_promotion_version is {version}, and model {name} of {self.environment} has no such version; "
            f"expected one of {few([str(entry['version']) for entry in versions])}"
        )

    def versions(self, model: dict) -> list[dict]:
        """All versions of a registered model, the newest first."""
        name, quote = model["name"], '"' if "'" in model["name"] else "'"
        asked = f"name={quote}{name}{quote}"
        if is_prompt(model):
            # Without these words MLflow leaves prompts out.
            asked += f" AND tags.`{PROMPT}`='true'"
        found = self.pages("GET", "2.0/mlflow/model-versions/search", "model_versions", filter=asked)
        return sorted(found, key=lambda entry: -int(entry["version"]))

    def location(self, version: dict) -> str:
        """Where a version's artifacts are."""
        asked = {"name": version["name"], "version": version["version"]}
        return self.server.ask("GET", "2.0/mlflow/model-versions/get-download-uri", **asked)["artifact_uri"]

    def make_model(self, name: str, model: dict) -> None:
        values = {"tags": model.get("tags") or [], "description": model.get("description") or ""}
        self.server.ask("POST", "2.0/mlflow/registered-models/create", name=name, **values)

    def make_version(self, **values) -> str:
        """Register a version; its number."""
        return str(self.server.ask("POST", "2.0/mlflow/model-versions/create", **values)["model_version"]["version"])

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.server.ask("POST", "2.0/mlflow/registered-models/alias", name=name, alias=alias, version=version)

    # -- Runs -------------------------------------------------------------------------------------------------------

    def experiment(self, identifier: str) -> dict:
        return self.server.ask("GET", "2.0/mlflow/experiments/get", experiment_id=identifier)["experiment"]

    def experiment_called(self, name: str) -> dict | None:
        found = self.find("2.0/mlflow/experiments/get-by-name", experiment_name=name)
        return found and found["experiment"]

    def experiment_ids(self) -> list[str]:
        """Those of all experiments, deleted ones too."""
        found = self.pages("POST", "2.0/mlflow/experiments/search", "experiments", view_type="ALL")
        return [entry["experiment_id"] for entry in found]

    def make_experiment(self, name: str) -> str:
        return self.server.ask("POST", "2.0/mlflow/experiments/create", name=name)["experiment_id"]

    def run(self, identifier: str) -> dict | None:
        found = self.find("2.0/mlflow/runs/get", run_id=identifier)
        return found and found["run"]

    def run_with_tag(self, experiments: list[str], key: str, value: str) -> dict | None:
        """The first run that has a tag, also a deleted one."""
        asked = {"experiment_ids": experiments, "filter": f"tags.`{key}` = '{value}'", "run_view_type": "ALL"}
        found = self.server.ask("POST", "2.0/mlflow/runs/search", max_results=1, **asked).get("runs")
        return found[0] if found else None

    def make_run(self, experiment: str, info: dict, tags: dict[str, str]) -> dict:
        """A run that has begun when another one began."""
        values = {"run_name": info.get("run_name") or "", "start_time": info["start_time"], "tags": entries(tags)}
        return self.server.ask("POST", "2.0/mlflow/runs/create", experiment_id=experiment, **values)["run"]

    def end_run(self, identifier: str, info: dict) -> None:
        """Let a run have ended as another one did."""
        ended = {"end_time": info["end_time"]} if info.get("end_time") else {}
        self.server.ask("POST", "2.0/mlflow/runs/update", run_id=identifier, status=info["status"], **ended)

    def history(self, run: str, metric: str) -> Iterator[dict]:
        """Every value that a run has logged of a metric."""
        asked = {"run_id": run, "metric_key": metric}
        return self.pages("GET", "2.0/mlflow/metrics/get-history", "metrics", **asked)

    def log(self, run: str, params: list[dict], tags: dict[str, str]) -> None:
        """Log parameters and tags of a run; what it has already stays as it is."""
        self._log(run, "params", params, MOST_PARAMS)
        self._log(run, "tags", entries(tags), MOST_TAGS)

    def log_metrics(self, run: str, metrics: list[dict]) -> None:
        """Log values of a metric; those that are there already stay as they are.

        MLflow finds those only in a request of no more than a hundred metrics with different names.
        """
        self._log(run, "metrics", metrics, MOST_METRICS)

    def _log(self, run: str, key: str, values: list[dict], most: int) -> None:
        for first in range(0, len(values), most):
            self.server.ask("POST", "2.0/mlflow/runs/log-batch", run_id=run, **{key: values[first : first + most]})

    def log_inputs(self, run: str, datasets: list[dict], models: list[dict]) -> None:
        self.server.ask("POST", "2.0/mlflow/runs/log-inputs", run_id=run, datasets=datasets, models=models)

    def log_outputs(self, run: str, models: list[dict]) -> None:
        self.server.ask("POST", "2.0/mlflow/runs/outputs", run_id=run, models=models)

    # -- Logged models ----------------------------------------------------------------------------------------------

    def logged_model(self, identifier: str) -> dict | None:
        found = self.find(f"2.0/mlflow/logged-models/{identifier}")
        return found and found["model"]

    def logged_model_with_tag(self, experiments: list[str], key: str, value: str) -> dict | None:
        """The first logged model that has a tag."""
        asked = {"experiment_ids": experiments, "filter": f"tags.`{key}` = '{value}'"}
        found = self.server.ask("POST", "2.0/mlflow/logged-models/search", max_results=1, **asked).get("models")
        return found[0] if found else None

    def make_logged_model(self, **values) -> dict:
        return self.server.ask("POST", "2.0/mlflow/logged-models", **values)["model"]

    def finish_logged_model(self, identifier: str) -> None:
        """Say that all its bytes are there."""
        path = f"2.0/mlflow/logged-models/{identifier}"
        self.server.ask("PATCH", path, model_id=identifier, status="LOGGED_MODEL_READY")


def entries(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as the API takes them."""
    return [{"key": key, "value": value} for key, value in tags.items()]


def pairs(found: list[dict] | None) -> dict[str, str]:
    """Tags as the API gives them."""
    return {entry["key"]: entry.get("value", "") for entry in found or []}


def is_prompt(found: dict) -> bool:
    """Whether a registered model or a version is a prompt."""
    return pairs(found.get("tags")).get(PROMPT) == "true"


def few(names: list[str]) -> str:
    """Some names for a sentence."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none, for it has none"
