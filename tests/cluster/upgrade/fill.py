"""Fill an MLflow with everything that its users keep in it; runs inside the image of an old release.

The release's own client talks to its own server. What a release does not have yet, or no more, is left out. Settings:
MLFLOW_TRACKING_URI, the administrator's MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and those of the bucket.
The users and what they may do are in people.py, which lies beside this file.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path

import mlflow
import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from people import PASSWORDS

# 2024-01-02 03:04:05 UTC, so that a clock does not decide what is written.
START = 1704164645000
URI = os.environ["MLFLOW_TRACKING_URI"]
# Larger than one part of an upload.
BIG_ARTIFACT_BYTES = 5_000_000


def main() -> None:
    client = mlflow.MlflowClient()
    experiments = fill_experiments(client)
    runs = fill_runs(client, experiments)
    fill_artifacts(client, runs)
    models = fill_models(client, runs)
    fill_prompts(client)
    fill_traces(experiments["vision"])
    if hasattr(client, "create_logged_model"):
        fill_logged_model(client, experiments["vision"], runs["parent"])
    fill_users(experiments, models)
    print(json.dumps({"release": mlflow.__version__, "experiments": experiments, "runs": runs}))


def fill_experiments(client: mlflow.MlflowClient) -> dict[str, str]:
    """Experiments whose artifacts go to the bucket directly and through the server, one of them deleted."""
    made = {
        "vision": client.create_experiment("vision", tags={"team": "red", "note": "Ünïcode, and a 'quote'"}),
        "language": client.create_experiment(
            "language", artifact_location="mlflow-artifacts:/language", tags={"team": "blue"}
        ),
        "closed": client.create_experiment("closed", tags={"team": "green"}),
        "deleted": client.create_experiment("deleted"),
    }
    client.delete_experiment(made["deleted"])
    return made


def fill_runs(client: mlflow.MlflowClient, experiments: dict[str, str]) -> dict[str, str]:
    """Runs of every kind: nested, failed, deleted; with params, tags, datasets and the history of metrics."""
    runs = {}

    def run(name: str, experiment: str, tags: dict[str, str], status: str = "FINISHED") -> str:
        made = client.create_run(experiments[experiment], start_time=START, run_name=name, tags=tags)
        runs[name] = made.info.run_id
        metrics = [Metric("loss", 1 / (step + 1), START + 1000 * step, step) for step in range(25)]
        if name == "parent":
            # Twice the same step, and what a database may not take.
            metrics += [Metric("loss", 0.03, START + 99000, 24), Metric("negative", -1e-9, START, 0)]
            metrics += [Metric(f"extreme_{value}", float(value), START + 1, 3) for value in ("nan", "inf", "-inf")]
        params = [Param("alpha", "0.5"), Param("path", "/a b/ü?x=%20"), Param("long", "x" * 400)]
        client.log_batch(runs[name], metrics, params, [RunTag("color", "green"), RunTag("empty", "")])
        client.set_terminated(runs[name], status, START + 60000)
        return runs[name]

    parent = run("parent", "vision", {"mlflow.note.content": "the *parent*"})
    run("child", "vision", {"mlflow.parentRunId": parent})
    run("failed", "vision", {}, "FAILED")
    run("proxied", "language", {})
    run("secret", "closed", {})
    client.delete_run(run("gone", "vision", {}))
    dataset = Dataset("digits", "0123abcd", "local", json.dumps({"uri": "/data/digits"}), profile='{"rows": 3}')
    client.log_inputs(parent, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    return runs


def fill_artifacts(client: mlflow.MlflowClient, runs: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder, "big ü.bin")
        big.write_bytes(random.Random(1).randbytes(BIG_ARTIFACT_BYTES))
        client.log_artifact(runs["parent"], str(big))
        small = Path(folder, "notes.txt")
        small.write_text("written by the old release\n", "utf-8")
        for name, run in runs.items():
            if name != "gone":
                client.log_artifact(run, str(small), "a folder/and another")


def fill_models(client: mlflow.MlflowClient, runs: dict[str, str]) -> list[str]:
    """Registered models with versions, aliases, descriptions, tags and stages."""
    for name in ("classifier", "translator ü", "closed-model"):
        client.create_registered_model(name, tags={"domain": name}, description=f"What {name} does")
    for number, run in enumerate(("parent", "child"), 1):
        source = client.get_run(runs[run]).info.artifact_uri + "/a folder"
        client.create_model_version(
            "classifier", source, runs[run], tags={"accuracy": "0.9"}, description=f"Version {number}"
        )
    client.create_model_version("translator ü", "s3://elsewhere/model")
    client.create_model_version("closed-model", "s3://elsewhere/closed")
    client.set_registered_model_alias("classifier", "champion", "1")
    client.set_registered_model_alias("classifier", "challenger", "2")
    client.transition_model_version_stage("classifier", "1", "Production")
    client.update_model_version("classifier", "2", "The second, described again")
    return ["classifier", "translator ü", "closed-model"]


def fill_prompts(client: mlflow.MlflowClient) -> None:
    for template in ("Say {{word}}.", "Please say {{word}}."):
        client.register_prompt("greeting", template, commit_message=template.split()[0], tags={"tone": "kind"})
    client.set_prompt_alias("greeting", "production", 1)


def fill_traces(experiment: str) -> None:
    """Traces that ended well and badly, with spans in spans, and what people said of them."""
    mlflow.set_experiment(experiment_id=experiment)
    traces = [trace(number) for number in range(3)]
    traces.append(trace(3, fails=True))
    for identifier in traces:
        wait_for_spans(identifier)
    # Release 2 has the functions, for Databricks alone.
    if not mlflow.__version__.startswith("2."):
        from mlflow.entities import AssessmentSource

        human = AssessmentSource("HUMAN", "alice@example.com")
        judge = AssessmentSource("LLM_JUDGE", "a judge")
        mlflow.log_feedback(trace_id=traces[0], name="helpful", value=True, source=human, rationale="It is")
        mlflow.log_feedback(trace_id=traces[0], name="score", value=0.25, source=judge, metadata={"k": "v"})
        mlflow.log_feedback(trace_id=traces[1], name="labels", value=["a", "b"], source=human)
        mlflow.log_expectation(trace_id=traces[1], name="answer", value={"text": "42"}, source=human)


def trace(number: int, fails: bool = False) -> str:
    """Log a trace, and return its identifier."""
    request_id = ""
    try:
        with mlflow.start_span(name=f"question {number}", span_type="CHAIN", attributes={"number": number}) as span:
            request_id = span.request_id
            span.set_inputs({"question": f"What is {number} and {number}?", "ü": [1, 2.5, None, True]})
            with mlflow.start_span(name="search", span_type="RETRIEVER") as child:
                child.set_inputs({"query": number})
                child.set_outputs([{"page_content": "text", "metadata": {"source": "here"}}])
            mlflow.update_current_trace(tags={"customer": f"c{number}"})
            if fails:
                raise ValueError("no answer")
            span.set_outputs({"answer": number * 2})
    except ValueError:
        pass
    return request_id


def wait_for_spans(identifier: str) -> None:
    """Wait until the server has a trace whole: a client sends it in the background, and says nothing if it cannot."""
    end = time.monotonic() + 30
    while True:
        try:
            if mlflow.MlflowClient().get_trace(identifier).data.spans:
                return
        except MlflowException as error:
            if time.monotonic() > end:
                raise SystemExit(f"the trace {identifier} did not arrive within 30 s: {error}") from None
        time.sleep(0.5)


def fill_logged_model(client: mlflow.MlflowClient, experiment: str, run: str) -> None:
    model = client.create_logged_model(
        experiment, "net", run, tags={"size": "small"}, params={"layers": "3"}, model_type="agent"
    )
    client.log_metric(run, "model_accuracy", 0.75, START + 5000, 7, model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")


def fill_users(experiments: dict[str, str], models: list[str]) -> None:
    """Users, each with what he may do; the last of a release's two ways to say so is taken."""
    admin = get_app_client("basic-auth", tracking_uri=URI)
    for user, password in PASSWORDS.items():
        admin.create_user(user, password)
    admin.update_user_admin("erin", True)

    def grant(user: str, kind: str, name: str, permission: str) -> None:
        if hasattr(admin, "grant_user_permission"):
            admin.grant_user_permission(user, kind, name, permission)
        elif kind == "experiment":
            admin.create_experiment_permission(name, user, permission)
        else:
            # Prompts are registered models to these releases.
            admin.create_registered_model_permission(name, user, permission)

    grant("bob", "experiment", experiments["vision"], "EDIT")
    grant("bob", "prompt", "greeting", "EDIT")
    grant("carol", "registered_model", models[0], "MANAGE")
    if not hasattr(admin, "grant_user_permission"):
        # Later releases have dropped it, and those that follow them call it DENY.
        grant("dave", "experiment", experiments["closed"], "NO_PERMISSIONS")
        grant("dave", "registered_model", models[2], "NO_PERMISSIONS")
    # Who makes an experiment may manage it, without anybody's word.
    made = requests.post(
        f"{URI}/api/2.0/mlflow/experiments/create",
        json={"name": "carol's own", "tags": [{"key": "team", "value": "carol"}]},
        auth=("carol", PASSWORDS["carol"]),
        timeout=30,
    )
    made.raise_for_status()


if __name__ == "__main__":
    main()
