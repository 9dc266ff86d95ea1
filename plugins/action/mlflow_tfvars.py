"""Runs the module mlflow_tfvars, and writes what it has put together.

Only Ansible itself has the vault password of a run, and a module's arguments are on disk while it runs. So the module
hands the secrets over to this action, which runs in Ansible and encrypts them before it writes anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, is_encrypted, match_encrypt_secret
from ansible.plugins.action import ActionBase

HEADER = "---\n# From a terraform.tfvars, by playbooks/import_tfvars.yml: docs/terraform.md\n"
HOSTS = "---\nmlflow:\n  children:\n    {0}:\n      hosts:\n        mlflow-{0}:\n"
SECRETS = "mlflow_environment_secrets"
SHARED = "common/group_vars/all"
# What Ansible reads of a folder of variables.
SUFFIXES = ("", ".yml", ".yaml", ".json")


class ActionModule(ActionBase):
    """See the module of the same name."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Let the module read the tfvars, refuse what is in the way, and write what the inventory does not say."""
        result = super().run(tmp, task_vars)
        # A path is seen from where the run was started; a module would see it from the playbook's folder.
        paths = {
            name: str(Path(self._task.args[name]).expanduser().absolute())
            for name in ("path", "directory")
            if self._task.args.get(name)
        }
        read = self._execute_module(module_args={**self._task.args, **paths}, task_vars=task_vars)
        files = read.pop("files", None)
        result.update(read)
        if files is None:
            return result
        self._root, self._environment = Path(paths["directory"], read["environment"]), read["environment"]
        self._problems: list[str] = []
        texts = self._texts(files)
        secret = [path for path in texts if SECRETS in files.get(path, {})]
        contents = {path: self._encrypted(text) if path in secret else text.encode() for path, text in texts.items()}
        if self._problems:
            return {**result, "failed": True, "msg": "; ".join(self._problems), "problems": self._problems}
        result["directory"] = self._shown("")
        result["changes"] = [self._shown(path) for path in texts]
        result["changed"] = bool(texts)
        if self._task.diff:
            diffs = [
                {"before": "", "after": f"(secrets, encrypted: {', '.join(files[path][SECRETS]['value'])})\n"}
                if path in secret
                else {"before": "", "after": text}
                for path, text in texts.items()
            ]
            headers = [{"after_header": path} for path in result["changes"]]
            result["diff"] = [diff | header for diff, header in zip(diffs, headers, strict=True)]
        if not self._task.check_mode:
            try:
                for path, content in contents.items():
                    create(self._root / path, content, 0o600 if path in secret else 0o644)
            except OSError as error:
                return {**result, "failed": True, "msg": f"{error.filename}: {error.strerror}"}
        return result

    def _texts(self, files: dict[str, dict]) -> dict[str, str]:
        """The files that are not there yet, with what nothing in the inventory says.

        Args:
            files: What the module returns: variables by their file, each with its value and its YAML.
        """
        group_vars = self._root / "group_vars"
        common = self._variables(self._root.parent / SHARED)
        own = self._variables(group_vars / self._environment, *group_vars.glob(f"{self._environment}.*"))
        if not common:
            self._problems.append(
                f"{self._root.parent} has no {SHARED}; expected the folder of this project's inventories"
            )
        wanted = {name: entry["value"] for entries in files.values() for name, entry in entries.items()}
        if SECRETS in wanted:
            self._problems += [
                f"{self._shown(path)} has secrets in plain text; expected them encrypted: ansible-vault encrypt"
                for path, variables in own.items()
                if SECRETS in variables and not is_encrypted(path.read_bytes())
            ]
        merged = {**flat(common), **wanted, **flat(own)}
        self._templates = self._templar.copy_with_new_env(available_variables=merged)

        texts = {}
        if not self._has_host():
            texts["hosts.yml"] = HOSTS.format(self._environment)
        if not group_vars.joinpath("all").exists():
            texts["group_vars/all"] = f"../../{SHARED}"
        for path, entries in files.items():
            missing = []
            for name, entry in entries.items():
                said = flat(own).get(name, flat(common).get(name))
                differing = self._differing(name, said, entry["value"])
                places = [place for place, variables in own.items() if name in variables]
                if differing and places:
                    where = " and ".join(map(self._shown, places))
                    self._problems.append(f"{where} says another {', '.join(differing)}; expected what the tfvars says")
                elif differing:
                    missing.append(name)
            if missing and (self._root / path).exists():
                self._problems.append(
                    f"{self._shown(path)} is there, without {', '.join(missing)}; expected it as the tfvars says, or "
                    "no such file"
                )
            elif missing:
                texts[path] = HEADER + "".join(entries[name]["yaml"] for name in missing)
        return texts

    def _variables(self, *places: Path) -> dict[Path, dict]:
        """The variables of files and folders, by file, in the order in which Ansible reads them."""
        paths = sorted(path for place in places for path in [place, *place.rglob("*")])
        wanted = (path for path in paths if path.suffix in SUFFIXES and not path.name.startswith("."))
        return {path: self._load(path) for path in wanted if path.is_file()}

    def _load(self, path: Path) -> dict:
        """The mapping in a file. An error of Ansible's own would show the lines around it."""
        try:
            found = self._loader.load_from_file(str(path), cache="none", trusted_as_template=True) or {}
        except AnsibleError:
            found = None
        if not isinstance(found, dict):
            self._problems.append(
                f"{self._shown(path)} cannot be read; expected variables, and the vault password if it is encrypted"
            )
            return {}
        return found

    def _has_host(self) -> bool:
        """Whether the inventory has the environment's host; refuses another inventory in its place."""
        path = self._root / "hosts.yml"
        if not path.exists():
            return False
        found: Any = self._load(path)
        for key in ("mlflow", "children", self._environment, "hosts"):
            found = found.get(key) if isinstance(found, dict) else None
        host = f"mlflow-{self._environment}"
        if not isinstance(found, dict) or host not in found:
            self._problems.append(f"{self._shown(path)} has no {host} in {self._environment} in mlflow; expected it")
        return True

    def _differing(self, name: str, said: Any, wanted: Any) -> list[str]:
        """What the inventory does not say as the tfvars does: the variable, or the secrets in it."""
        try:
            said = self._templates.template(said)
        except AnsibleError:
            said = None
        if name == SECRETS:
            present = said if isinstance(said, dict) else {}
            return [f"{name}.{key}" for key, value in wanted.items() if present.get(key) != value]
        return [] if said == wanted else [name]

    def _encrypted(self, text: str) -> bytes:
        """A text as Ansible Vault keeps it, with the password that ansible-vault would take."""
        secrets = getattr(self._loader._vault, "secrets", None)
        identity = constants.config.get_config_value("DEFAULT_VAULT_ENCRYPT_IDENTITY")
        try:
            label, secret = match_encrypt_secret(secrets or [], encrypt_vault_id=identity) or (None, None)
        except AnsibleError as error:
            label, secret = None, self._problems.append(str(error))
        if not secret:
            self._problems.append(
                "there are secrets in the tfvars, and no vault password to encrypt them with; expected "
                "--ask-vault-pass or --vault-password-file"
            )
            return b""
        return VaultLib(secrets).encrypt(text, secret=secret, vault_id=label)

    def _shown(self, path: str | Path) -> str:
        """A path in the inventory, as a person would write it."""
        return os.path.relpath(self._root / path)


def flat(files: dict[Path, dict]) -> dict:
    """The variables of several files: a later one wins."""
    return {name: value for variables in files.values() for name, value in variables.items()}


def create(path: Path, content: bytes, mode: int) -> None:
    """Make a file that is not there yet, or the link to what all environments share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "all":
        path.symlink_to(content.decode())
        return
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
