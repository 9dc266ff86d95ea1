"""Runs mlflow_model_promotion as mlflow_schema is run, with its progress shown."""

from __future__ import annotations

from ansible.plugins.loader import action_loader


class ActionModule(action_loader.get("mlflow_schema", class_only=True)):
    """See the module of the same name."""
