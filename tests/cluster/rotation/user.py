"""An ordinary user's client that logs twice a second, as long as its standard input is open.

It prints that it began, and in the end what failed and how much did not. Nothing is tried again.
"""

import json
import os
import sys
import threading
import traceback

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
import mlflow

client = mlflow.MlflowClient()
# Its artifacts go through the server, which needs the bucket's key for them, and lets a user write below the identifier
# of an experiment of the user's own.
own = client.create_experiment(f"{sys.argv[1]}, artifacts")
experiment = client.create_experiment(sys.argv[1], f"mlflow-artifacts:/{own}")
run = client.create_run(experiment).info.run_id
print("began", flush=True)

over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
logged, failed = 0, []
while not over.wait(0.5):
    try:
        client.log_metric(run, "step", logged, step=logged)
        if logged % 4 == 0:
            client.log_text(run, str(logged), "last.txt")
        logged += 1
    except Exception:
        failed.append(traceback.format_exc()[-600:])
steps = []
if not failed:
    steps = [metric.step for metric in client.get_metric_history(run, "step")]
print(json.dumps({"logged": logged, "failed": failed, "kept": len(steps), "run": run}))
