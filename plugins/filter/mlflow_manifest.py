"""Filters that write values into manifests, so that YAML and Kubernetes read what was meant."""

from __future__ import annotations

import json
import re
from typing import Any


def yaml_text(value: Any) -> str:
    """Any value on one line of YAML.

    JSON is YAML but for one thing, which Ansible's to_json makes use of: a character beyond U+FFFF as two escapes of
    half a character each, which a YAML parser refuses.
    """
    return re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))


def variable_text(value: str) -> str:
    """A text as the `value` of a container's environment variable, on one line of YAML.

    Kubernetes would put another variable's value in the place of $(NAME); $$ is what it reads as $.
    """
    return yaml_text(value.replace("$", "$$"))


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_yaml": yaml_text, "mlflow_variable": variable_text}
