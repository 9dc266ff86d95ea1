"""A fake of AWX's API, as far as the modules of awx.awx ask it. No part of it is AWX; it keeps everything in memory."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PLAYBOOK = re.compile(r"^\s*?-?\s*?(?:hosts|(?:ansible\.builtin\.)?import_playbook):", re.MULTILINE)
RRULE = re.compile(r"DTSTART(;TZID=[\w/]+:\d{8}T\d{6}|:\d{8}T\d{6}Z) RRULE:(?=\S*FREQ=)(?=\S*INTERVAL=)\S+")

# What each kind of object has besides its name and description, with the API's defaults. Other fields are ignored.
KINDS: dict[str, dict[str, Any]] = {
    "organizations": {"default_environment": None, "max_hosts": 0},
    "credential_types": {"kind": None, "inputs": {}, "injectors": {}, "managed": False},
    "execution_environments": {"organization": None, "image": None, "credential": None, "pull": ""},
    "credentials": {"organization": None, "credential_type": None, "inputs": {}},
    "projects": {
        "organization": None,
        "scm_type": "",
        "scm_url": "",
        "scm_branch": "",
        "scm_clean": False,
        "scm_update_on_launch": False,
        "default_environment": None,
        "scm_revision": "",
    },
    "inventories": {"organization": None, "kind": "", "host_filter": None, "variables": ""},
    "inventory_sources": {
        "organization": None,
        "inventory": None,
        "source": "",
        "source_project": None,
        "source_path": "",
        "source_vars": "",
        "execution_environment": None,
        "overwrite": False,
        "overwrite_vars": False,
        "update_on_launch": False,
    },
    "job_templates": {
        "organization": None,
        "project": None,
        "inventory": None,
        "execution_environment": None,
        "job_type": "run",
        "playbook": "",
        "extra_vars": "",
        "diff_mode": False,
        "survey_enabled": False,
    },
    "workflow_job_templates": {"organization": None, "extra_vars": "", "survey_enabled": False},
    "workflow_job_template_nodes": {"workflow_job_template": None, "unified_job_template": None, "identifier": ""},
    "workflow_approval_templates": {"organization": None, "timeout": 0},
    "schedules": {"unified_job_template": None, "rrule": "", "enabled": True, "extra_data": {}},
}
UNIFIED = ("projects", "inventory_sources", "job_templates", "workflow_job_templates", "workflow_approval_templates")
REFERENCES = {
    "organization": "organizations",
    "project": "projects",
    "inventory": "inventories",
    "workflow_job_template": "workflow_job_templates",
    "unified_job_template": "unified_job_templates",
}
# What goes with an object: the kind and the field that refers to it.
CASCADE = {
    "inventories": [("inventory_sources", "inventory")],
    "job_templates": [("schedules", "unified_job_template"), ("workflow_job_template_nodes", "unified_job_template")],
    "workflow_job_templates": [("workflow_job_template_nodes", "workflow_job_template")],
}


class Refused(Exception):
    """An answer of the API that is no success."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


class FakeAwx:
    """An AWX that has nothing, whose projects all are the checkout at `root`."""

    def __init__(self, root: Path, token: str) -> None:
        self.root, self.token = root, token
        self.objects: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.related: dict[tuple[int, str], list[int]] = {}
        self.surveys: dict[int, dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        self.last = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()

    def names(self, kind: str) -> list[str]:
        """The names of a kind's objects."""
        return sorted(item.get("identifier") or item["name"] for item in self.objects[kind].values())

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object by its name."""
        [item] = [item for item in self.objects[kind].values() if name in (item.get("identifier"), item["name"])]
        return item

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the body of an answer to a request."""
        if method != "GET":
            self.writes.append((method, path))
        kind, *rest = path.removeprefix("/api/v2/").strip("/").split("/")
        if kind == "me":
            return 200, {"count": 1, "next": None, "results": [{"id": 1, "username": "admin"}]}
        if kind == "project_updates":
            return 200, {"id": 1, "status": "successful", "finished": "now", "failed": False}
        if not rest:
            return (200, self.page(path, kind, query)) if method == "GET" else (201, self.create(kind, body))
        item = self.objects.get(kind, {}).get(int(rest[0]))
        if item is None:
            raise Refused(404, {"detail": "Not found."})
        if len(rest) > 1:
            return self.sub(method, kind, item, rest[1], body)
        if method == "PATCH":
            self.check(kind, item | body)
            item.update({key: value for key, value in body.items() if key in item})
        elif method == "DELETE":
            return self.delete(kind, item)
        return 200, item

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind, or of all that jobs are made of."""
        kinds = UNIFIED if kind == "unified_job_templates" else (kind,)
        if not set(kinds) <= set(KINDS):
            raise Refused(404, {"detail": "Not found."})
        return [item for one in kinds for item in self.objects[one].values()]

    def page(self, path: str, kind: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of a list."""
        size, page = int(query.pop("page_size", 25)), int(query.pop("page", 1))
        found = [item for item in self.all(kind) if all(self.matches(item, *pair) for pair in query.items())]
        more = f"{path}?page={page + 1}&page_size={size}" if len(found) > page * size else None
        return {"count": len(found), "next": more, "results": found[(page - 1) * size : page * size]}

    def matches(self, item: dict[str, Any], field: str, value: str) -> bool:
        """Whether an object fits a filter, such as name=a, name__in=a,b or workflow_job_template__name__in=a."""
        head, *tail = field.split("__")
        if head in REFERENCES and tail:
            targets = [other for other in self.all(REFERENCES[head]) if other["id"] == item.get(head)]
            return any(self.matches(other, "__".join(tail), value) for other in targets)
        if head not in item:
            raise Refused(400, {"detail": f"{item['type']} has no field named '{head}'"})
        return str(item[head]) in value.split(",") if tail == ["in"] else str(item[head]) == value

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make an object."""
        if kind not in KINDS:
            raise Refused(404, {"detail": "Not found."})
        fields = {"name": "", "description": "", **KINDS[kind]}
        item = {**fields, **{key: value for key, value in body.items() if key in fields}}
        if kind == "job_templates" and item["project"]:
            item["organization"] = self.objects["projects"][item["project"]]["organization"]
        self.check(kind, item)
        self.last += 1
        url = f"/api/v2/{kind}/{self.last}/"
        item |= {"id": self.last, "type": kind[:-3] + "y" if kind.endswith("ies") else kind[:-1], "url": url}
        item |= {"related": {"survey_spec": f"{url}survey_spec/"}, "summary_fields": {}}
        self.objects[kind][self.last] = item
        if kind == "projects":
            # AWX fetches a new project at once.
            return {**item, "summary_fields": {"current_update": {"id": 1}}}
        return item

    def check(self, kind: str, item: dict[str, Any]) -> None:
        """Refuse what AWX refuses."""
        same = ("name", "organization", "inventory", "workflow_job_template", "identifier", "credential_type")
        for other in self.objects[kind].values():
            if other["id"] != item.get("id") and all(other.get(key) == item.get(key) for key in same):
                raise Refused(400, {"__all__": [f"{kind} with this name already exists."]})
        if kind == "credential_types" and item["kind"] not in ("cloud", "net"):
            raise Refused(400, {"kind": [f"Must be 'cloud' or 'net', not {item['kind']}"]})
        if kind == "schedules" and not RRULE.fullmatch(item["rrule"]):
            raise Refused(400, {"rrule": ["Valid DTSTART required in rrule, and INTERVAL in each rule."]})
        if kind == "job_templates":
            playbook = self.root / item["playbook"]
            if not playbook.is_file() or not PLAYBOOK.search(playbook.read_text()):
                raise Refused(400, {"playbook": ["Playbook not found for project."]})

    def sub(self, method: str, kind: str, item: dict[str, Any], name: str, body: dict[str, Any]) -> tuple[int, Any]:
        """A request to what hangs on an object."""
        if name == "survey_spec":
            if method == "POST":
                self.survey(body)
                self.surveys[item["id"]] = body
            return 200, self.surveys.get(item["id"], {})
        if name == "create_approval_template":
            approval = self.create("workflow_approval_templates", body)
            item["unified_job_template"] = approval["id"]
            item["related"]["unified_job_template"] = approval["url"]
            return 201, approval
        linked = self.related.setdefault((item["id"], name), [])
        if method == "POST":
            linked.remove(body["id"]) if body.get("disassociate") else linked.append(body["id"])
            return 204, None
        others = self.objects["credentials" if name == "credentials" else kind]
        return 200, {"count": len(linked), "next": None, "results": [others[one] for one in linked]}

    def survey(self, spec: dict[str, Any]) -> None:
        """Refuse a survey that AWX refuses."""
        if {"name", "description", "spec"} - set(spec) or not spec["spec"]:
            raise Refused(400, {"error": "a field is missing from survey spec."})
        for question in spec["spec"]:
            if {"type", "question_name", "variable", "required"} - set(question):
                raise Refused(400, {"error": "a field is missing from survey question."})
            expected = {"integer": int, "text": str, "multiplechoice": str, "multiselect": str}[question["type"]]
            if not isinstance(question.get("default", expected()), expected):
                raise Refused(400, {"error": f"Default value expected to be {question['type']}."})
            if question["type"] == "multiplechoice" and question["default"] not in question["choices"]:
                raise Refused(400, {"error": "Default choice must be answered from the choices listed."})

    def delete(self, kind: str, item: dict[str, Any]) -> tuple[int, Any]:
        """Remove an object and what goes with it."""
        if any(other["credential_type"] == item["id"] for other in self.objects["credentials"].values()):
            raise Refused(403, {"detail": "Credential types that are in use cannot be deleted"})
        for other, field in CASCADE.get(kind, []):
            for one in [one for one in self.objects[other].values() if one[field] == item["id"]]:
                self.delete(other, one)
        # Nobody else has a node's approval.
        self.objects["workflow_approval_templates"].pop(item.get("unified_job_template"), None)
        del self.objects[kind][item["id"]]
        return 202 if kind == "inventories" else 204, None


def handler_of(awx: FakeAwx) -> type[BaseHTTPRequestHandler]:
    """What a server needs to let a fake answer."""

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            try:
                if self.headers.get("Authorization") != f"Bearer {awx.token}":
                    raise Refused(401, {"detail": "Authentication credentials were not provided."})
                status, answer = awx.answer(self.command, url.path, query, body)
            except Refused as refusal:
                status, answer = refusal.status, refusal.body
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_request

        def log_message(self, *arguments: Any) -> None:
            """Be silent."""

    return Handler
