"""Read everything that fill.py has written, and what each user may do; the last line is JSON.

Any release's client from 2.22 on runs it, so that what the old and the new one read can be compared as it is. It needs
MLFLOW_TRACKING_URI, the administrator's MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the bucket's
settings. What the client does not know is missing.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import ViewType
from rights import FOREIGN, rights


def main(parts: list[str]) -> None:
    print(json.dumps({part: {"data": data, "rights": rights}[part]() for part in parts}))


def data() -> dict[str, dict]:
    """Everything in the stores, by kind."""
    client = mlflow.MlflowClient()
    found = client.search_experiments(ViewType.ALL, max_results=1000)
    experiments = {item.experiment_id: item for item in found if not item.name.startswith(FOREIGN)}
    answer = {
        "experiments": {key: experiment(item) for key, item in experiments.items()},
        "runs": runs(client, list(experiments)),
        "models": models(client),
        "prompts": prompts(client),
        "traces": traces(client, list(experiments)),
    }
    if hasattr(client, "search_logged_models"):
        answer["logged models"] = logged_models(client, list(experiments))
    return answer


def experiment(item: Any) -> dict:
    return {
        "name": item.name,
        "artifacts": item.artifact_location,
        "stage": item.lifecycle_stage,
        "tags": item.tags,
        "times": [item.creation_time, item.last_update_time],
    }


def runs(client: mlflow.MlflowClient, experiments: list[str]) -> dict[str, dict]:
    return {
        run.info.run_id: one_run(client, run) for run in client.search_runs(experiments, run_view_type=ViewType.ALL)
    }


def one_run(client: mlflow.MlflowClient, run: Any) -> dict:
    info, data, run_id = run.info, run.data, run.info.run_id
    history = {
        key: [[point.step, point.timestamp, str(point.value)] for point in client.get_metric_history(run_id, key)]
        for key in data.metrics
    }
    datasets = [
        {
            "dataset": [getattr(item.dataset, name) for name in ("name", "digest", "source", "schema", "profile")],
            "tags": {tag.key: tag.value for tag in item.tags},
        }
        for item in run.inputs.dataset_inputs
    ]
    return {
        "experiment": info.experiment_id,
        "name": info.run_name,
        "state": [info.status, info.lifecycle_stage, info.start_time, info.end_time, info.user_id],
        "params": data.params,
        "tags": data.tags,
        "metrics": {key: str(value) for key, value in data.metrics.items()},
        "history": history,
        "datasets": datasets,
        "artifacts": artifacts(client, run_id),
    }


def artifacts(client: mlflow.MlflowClient, run_id: str) -> dict[str, str]:
    """The sha256 of every file of a run, by its path."""
    with tempfile.TemporaryDirectory() as folder:
        if not client.list_artifacts(run_id):
            return {}
        top = Path(client.download_artifacts(run_id, "", folder))
        return {
            str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(top.rglob("*"))
            if path.is_file()
        }


def models(client: mlflow.MlflowClient) -> dict[str, dict]:
    found = client.search_registered_models(max_results=100)
    return {model.name: one_model(client, model.name) for model in found}


def one_model(client: mlflow.MlflowClient, name: str) -> dict:
    model = client.get_registered_model(name)
    versions = {}
    for version in client.search_model_versions(f"name='{name}'"):
        # A search does not tell the aliases.
        got = client.get_model_version(name, version.version)
        fields = ("run_id", "source", "description", "status", "current_stage", "creation_timestamp")
        versions[str(got.version)] = {field: getattr(got, field) for field in fields} | {
            "tags": got.tags,
            "aliases": sorted(got.aliases),
        }
    return {
        "description": model.description,
        "tags": model.tags,
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "times": [model.creation_timestamp, model.last_updated_timestamp],
        "versions": versions,
    }


def prompts(client: mlflow.MlflowClient) -> dict[str, Any]:
    """The versions of the prompt, and which one its alias means."""
    versions = {}
    for number in (1, 2):
        prompt = client.load_prompt("greeting", number)
        versions[str(number)] = {"template": prompt.template, "message": prompt.commit_message}
    return {"versions": versions, "production": str(client.load_prompt("prompts:/greeting@production").version)}


def traces(client: mlflow.MlflowClient, experiments: list[str]) -> dict[str, dict]:
    found = client.search_traces(experiment_ids=experiments, max_results=100)
    return {trace.info.request_id: one_trace(client.get_trace(trace.info.request_id)) for trace in found}


def one_trace(trace: Any) -> dict:
    info = trace.info
    # Release 3 has other names for the same, and keeps those of release 2.
    metadata = getattr(info, "trace_metadata", None) or info.request_metadata
    state = getattr(info, "state", None) or info.status
    spans = [
        {
            "name": span.name,
            "ids": [span.span_id, span.parent_id],
            "kind": span.span_type,
            "times": [span.start_time_ns, span.end_time_ns],
            "status": [
                str(getattr(span.status.status_code, "value", span.status.status_code)),
                span.status.description,
            ],
            "inputs": span.inputs,
            "outputs": span.outputs,
            "attributes": span.attributes,
            "events": [[event.name, event.timestamp] for event in span.events],
        }
        for span in trace.data.spans
    ]
    answer = {
        "experiment": info.experiment_id,
        "state": word(state),
        "times": [info.timestamp_ms, info.execution_time_ms],
        "tags": info.tags,
        "metadata": metadata,
        "spans": sorted(spans, key=lambda span: span["ids"][0]),
    }
    if hasattr(info, "assessments"):
        answer["assessments"] = sorted((assessment(item) for item in info.assessments), key=lambda item: item["name"])
    return answer


def word(value: Any) -> str:
    """A status, which some releases give as a member of an enumeration."""
    return str(getattr(value, "value", value))


def assessment(item: Any) -> dict:
    value = item.feedback.value if item.feedback else item.expectation.value
    return {
        "id": item.assessment_id,
        "name": item.name,
        "source": [item.source.source_type, item.source.source_id],
        "value": value,
        "rationale": item.rationale,
        "metadata": item.metadata,
        "times": [item.create_time_ms, item.last_update_time_ms],
    }


def logged_models(client: mlflow.MlflowClient, experiments: list[str]) -> dict[str, dict]:
    return {
        model.model_id: {
            "name": model.name,
            "experiment": model.experiment_id,
            "run": model.source_run_id,
            "status": word(model.status),
            "tags": model.tags,
            "params": model.params,
            "kind": model.model_type,
            "artifacts": model.artifact_location,
            "metrics": [[metric.key, metric.step, metric.timestamp, metric.value] for metric in model.metrics or []],
        }
        for model in client.search_logged_models(experiments)
    }


if __name__ == "__main__":
    main(sys.argv[1:])
