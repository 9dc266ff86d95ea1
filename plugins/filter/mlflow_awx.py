"""Filters of the role mlflow_awx: AWX's objects, one for each environment, and what they refer to."""

from __future__ import annotations

from typing import Any

PLACEHOLDER = "<environment>"

# What the options of awx.awx's modules refer to, by the API's name of its kind.
REFERENCES = {
    "organization": "organizations",
    "execution_environment": "execution_environments",
    "default_environment": "execution_environments",
    "project": "projects",
    "source_project": "projects",
    "inventory": "inventories",
    "credential": "credentials",
    "credentials": "credentials",
    "credential_type": "credential_types",
    "unified_job_template": "job_templates",
    "workflow_job_template": "workflow_job_templates",
    "success_nodes": "workflow_job_template_nodes",
}

# All that a module needs to find an object that it removes.
IDENTITY = ("name", "organization", "credential_type", "unified_job_template")


def name_of(item: dict[str, Any]) -> str:
    """The name by which AWX knows an object."""
    return item.get("identifier") or item["name"]


def title(kind: str, item: dict[str, Any]) -> str:
    """An object as people call it."""
    return f"{(kind[:-3] + 'y' if kind.endswith('ies') else kind[:-1]).replace('_', ' ')} {name_of(item)}"


def replaced(value: Any, environment: str) -> Any:
    """A value with an environment's name in each of its texts."""
    if isinstance(value, dict):
        return {key: replaced(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, environment) for item in value]
    return value.replace(PLACEHOLDER, environment) if isinstance(value, str) else value


def expanded(data: dict[str, list[dict]], environments: list[str]) -> dict[str, list[dict]]:
    """The objects of each kind: those with the placeholder in their name once for each environment."""
    return {
        kind: [
            replaced(item, environment)
            for item in items
            for environment in (environments if PLACEHOLDER in name_of(item) else [""])
        ]
        for kind, items in data.items()
    }


def references(item: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What an object refers to: the option, the kind and the name."""
    found = []
    for option, kind in REFERENCES.items():
        names = item.get(option) or []
        found += [(option, kind, name) for name in ([names] if isinstance(names, str) else names)]
    return found


def queries(objects: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """What to ask AWX to learn which objects, and which that they refer to, it has."""
    names = {kind: {name_of(item) for item in items} for kind, items in objects.items()}
    for items in objects.values():
        for item in items:
            for _, kind, name in references(item):
                names[kind].add(name)
    # A node's name is its own in its workflow alone.
    names["workflow_job_template_nodes"] = names["workflow_job_templates"]
    field = {"workflow_job_template_nodes": "workflow_job_template__name__in"}
    return {
        kind: {field.get(kind, "name__in"): ",".join(sorted(found)), "page_size": "200"}
        for kind, found in names.items()
        if found
    }


def prepared(objects: dict[str, list[dict]], existing: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Each object with what the role has to know of it.

    exists: AWX has it. ready: AWX has all that it refers to, so that a dry run can compare it.
    """
    known = {kind: {name_of(item) for item in items} for kind, items in existing.items()}
    return {
        kind: [
            {
                "name": name_of(item),
                "options": item,
                "identity": {key: item[key] for key in IDENTITY if key in item},
                "exists": name_of(item) in known.get(kind, set()),
                "ready": all(name in known.get(other, set()) for _, other, name in references(item)),
            }
            for item in items
        ]
        for kind, items in objects.items()
    }


def problems(objects: dict[str, list[dict]], existing: dict[str, list[dict]]) -> list[str]:
    """Say what the objects refer to that neither they nor AWX have."""
    known = {kind: {name_of(item) for item in items} for kind, items in objects.items()}
    for kind, items in existing.items():
        known[kind] |= {name_of(item) for item in items}
    return [
        f"{option} of {title(kind, item)} is {name}; expected one that AWX has or awx/*.yml makes"
        for kind, items in objects.items()
        for item in items
        for option, other, name in references(item)
        if name not in known[other]
    ]


def unready(objects: dict[str, list[dict]]) -> list[str]:
    """What a dry run can only tell: the objects of which AWX lacks something that they refer to."""
    return [
        f"would {'change' if item['exists'] else 'make'} {title(kind, item['options'])}"
        for kind, items in objects.items()
        for item in items
        if not item["ready"]
    ]


def without_links(nodes: list[dict]) -> list[dict]:
    """The nodes of workflows before they are linked: those that a node leads to have to be there first."""
    return [
        {**node, "options": {key: value for key, value in node["options"].items() if key != "success_nodes"}}
        for node in nodes
    ]


def links(nodes: list[dict]) -> list[dict]:
    """What links the nodes of workflows."""
    kept = ("identifier", "organization", "workflow_job_template", "success_nodes")
    return [
        {**node, "options": {key: node["options"][key] for key in kept if key in node["options"]}}
        for node in nodes
        if "success_nodes" in node["options"]
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict:
        """Name the filters."""
        return {
            "mlflow_awx_expanded": expanded,
            "mlflow_awx_links": links,
            "mlflow_awx_prepared": prepared,
            "mlflow_awx_problems": problems,
            "mlflow_awx_queries": queries,
            "mlflow_awx_unready": unready,
            "mlflow_awx_without_links": without_links,
        }
