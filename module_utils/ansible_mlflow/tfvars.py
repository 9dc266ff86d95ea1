"""What a terraform.tfvars says, in the words of an environment's inventory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import Error
from .hcl import Setting, read

# The secrets, in the file that Ansible Vault encrypts.
VAULT = "vault.yml"
SECRETS = "mlflow_environment_secrets"

# What a name in tfvars is here: file, variable, kind, and the names that Terraform modules give it. A variable of VAULT
# is a name within mlflow_environment_secrets. Nested maps are read as names with an underscore, and each name may begin
# with mlflow_. environment, artifact_root and image_tag are further down: they are no variables of their own.
KEYS = (
    ("environment.yml", "mlflow_environment_namespace", "text", ("namespace",)),
    ("environment.yml", "mlflow_environment_kubeconfig", "text", ("kubeconfig", "kubeconfig_path")),
    ("environment.yml", "mlflow_environment_context", "text", ("kube_context", "kubeconfig_context")),
    ("environment.yml", "mlflow_environment_image", "text", ("image", "image_repository")),
    ("environment.yml", "mlflow_environment_image_pull_policy", "text", ("image_pull_policy",)),
    ("database.yml", "mlflow_database_host", "text", ("postgres_host",)),
    ("database.yml", "mlflow_database_port", "number", ("postgres_port",)),
    ("database.yml", "mlflow_database_name", "text", ("postgres_database", "postgres_db")),
    ("database.yml", "mlflow_database_auth_name", "text", ("postgres_auth_database", "postgres_auth_db")),
    ("database.yml", "mlflow_database_username", "text", ("postgres_user", "postgres_username")),
    ("database.yml", "mlflow_database_tls_mode", "text", ("postgres_sslmode",)),
    ("object_store.yml", "mlflow_object_store_endpoint", "endpoint", ("minio_endpoint", "s3_endpoint")),
    ("object_store.yml", "mlflow_object_store_bucket", "text", ("minio_bucket", "s3_bucket")),
    ("object_store.yml", "mlflow_object_store_region", "text", ("minio_region", "s3_region")),
    ("server.yml", "mlflow_server_node_port", "number", ("node_port",)),
    ("server.yml", "mlflow_server_replicas", "number", ("replicas",)),
    ("server.yml", "mlflow_server_workers", "number", ("workers",)),
    ("server.yml", "mlflow_server_cpu_request", "text", ("cpu_request", "resources_requests_cpu")),
    ("server.yml", "mlflow_server_cpu_limit", "cores", ("cpu_limit", "resources_limits_cpu")),
    ("server.yml", "mlflow_server_memory_limit", "mebibytes", ("memory_limit", "resources_limits_memory")),
    ("server.yml", "mlflow_server_extra_allowed_hosts", "texts", ("allowed_hosts",)),
    ("server.yml", "mlflow_server_admin_username", "text", ("admin_username", "basic_auth_username")),
    (VAULT, "admin_password", "text", ("admin_password", "basic_auth_password")),
    (VAULT, "database_password", "text", ("postgres_password",)),
    (VAULT, "database_admin_username", "text", ("postgres_admin_user", "postgres_admin_username")),
    (VAULT, "database_admin_password", "text", ("postgres_admin_password",)),
    (VAULT, "object_store_access_key", "text", ("minio_access_key", "s3_access_key")),
    (VAULT, "object_store_secret_key", "text", ("minio_secret_key", "s3_secret_key")),
    (VAULT, "object_store_admin_access_key", "text", ("minio_root_user",)),
    (VAULT, "object_store_admin_secret_key", "text", ("minio_root_password",)),
    (VAULT, "flask_secret_key", "text", ("flask_secret_key", "flask_server_secret_key")),
    (VAULT, "kek_passphrase", "text", ("crypto_kek_passphrase",)),
    (VAULT, "webhook_key", "text", ("webhook_secret_encryption_key",)),
)
OTHER_NAMES = ("environment", "artifact_root", "image_tag")
PLACES = {name: (file, variable, kind) for file, variable, kind, names in KEYS for name in names}

EXPECTED = {
    "text": "text",
    "texts": "a list of texts",
    "number": "a whole number",
    "cores": "whole cores, such as 2 or 2000m",
    "mebibytes": "memory in Mi or Gi, such as 2048Mi",
    "endpoint": "text",
}
# Directories of inventories/ and groups that are no environments.
RESERVED = ("all", "common", "demo", "embedded", "mlflow", "ungrouped")
ENVIRONMENT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass
class Inventory:
    """What an environment's inventory is to say: variables by their file, secrets by their names."""

    environment: str
    files: dict[str, dict] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def inventory_of(text: str, environment: str, leave_out: list[str]) -> Inventory:
    """What a tfvars says, as variables of an environment.

    :param environment: the environment's name; empty where the tfvars says it.
    :param leave_out: names that need no variable.
    :raises Error: all that cannot be taken over, without a value: it may be a secret.
    """
    settings = read(text)
    given = {short(setting.name): setting for setting in settings}
    problems = [
        f"{setting.name} (line {setting.line}) and {given[short(setting.name)].name} are the same; expected one of them"
        for setting in settings
        if given[short(setting.name)] is not setting
    ]
    unknown = [setting for name, setting in given.items() if name not in PLACES and name not in OTHER_NAMES]
    refused = [f"{setting.name} (line {setting.line})" for setting in unknown if setting.name not in leave_out]
    if refused:
        problems.append(
            f"no variable is known for {', '.join(refused)}; expected names of docs/terraform.md, or these names in "
            "mlflow_import_leave_out"
        )
    found = Inventory(environment, left_out=[setting.name for setting in unknown])
    found.environment = name_of(given.get("environment"), environment, problems)
    for file, variable, kind, names in KEYS:
        values = []
        for setting in (given[name] for name in names if name in given):
            try:
                values.append((setting, converted(setting.value, kind)))
            except ValueError:
                problems.append(f"{setting.name} (line {setting.line}) is something else; expected {EXPECTED[kind]}")
        if len({str(value) for _, value in values}) > 1:
            told = " and ".join(f"{setting.name} (line {setting.line})" for setting, _ in values)
            problems.append(f"{told} are two values for {variable}; expected one")
        for _, value in values:
            (found.secrets if file == VAULT else found.files.setdefault(file, {}))[variable] = value
    add_tag(found, given.get("image_tag"), problems)
    add_artifact_root(found, given.get("artifact_root"), problems)
    if problems:
        raise Error("; ".join(problems), problems=problems)
    own = {"mlflow_environment_name": found.environment}
    if any("_admin_" not in name for name in found.secrets):
        own["mlflow_environment_secrets_source"] = "inventory"
    found.files["environment.yml"] = own | found.files.get("environment.yml", {})
    return found


def short(name: str) -> str:
    """A name without the project's own before it."""
    return name.removeprefix("mlflow_")


def converted(value: object, kind: str) -> object:
    """A value in the form of a variable, as Terraform and Kubernetes would read it.

    :raises ValueError: it has none.
    """
    if kind == "texts":
        if not isinstance(value, list):
            raise ValueError
        return [converted(item, "text") for item in value]
    if isinstance(value, bool):
        value = "true" if value else "false"
    if not isinstance(value, (str, int)):
        raise ValueError
    text = str(value)
    if kind == "endpoint":
        return text.removesuffix("/")
    if kind == "text":
        return text
    units = {"number": {"": 1}, "cores": {"": 1000, "m": 1}, "mebibytes": {"Mi": 1, "Gi": 1024}}[kind]
    found = re.fullmatch(r"(-?[0-9]{1,12})([A-Za-z]*)", text, re.ASCII)
    if not found or found[2] not in units:
        raise ValueError
    number = int(found[1]) * units[found[2]]
    if kind != "cores":
        return number
    if number % 1000:
        raise ValueError
    return number // 1000


def name_of(setting: Setting | None, wanted: str, problems: list[str]) -> str:
    """The environment's name, from the tfvars or from who started the run."""
    said = str(setting.value) if setting else wanted
    if not said:
        problems.append("the file has no environment; expected its name in mlflow_import_environment")
    elif wanted and said != wanted:
        problems.append(f"environment (line {setting.line}) is not mlflow_import_environment; expected {wanted}")
    elif not ENVIRONMENT.fullmatch(said) or said in RESERVED:
        problems.append(
            "the environment's name is no lower case letters, digits and inner hyphens, or is one of "
            f"{', '.join(RESERVED)}; expected a name such as dev"
        )
    return said


def add_tag(found: Inventory, tag: Setting | None, problems: list[str]) -> None:
    """Join an image and its tag, where they are two settings."""
    if not tag:
        return
    own = found.files.get("environment.yml", {})
    image = own.get("mlflow_environment_image")
    if not image or re.search(r"[:@][^/]*$", image):
        problems.append(f"{tag.name} (line {tag.line}) is given; expected an image beside it that has no tag yet")
    else:
        own["mlflow_environment_image"] = f"{image}:{tag.value}"


def add_artifact_root(found: Inventory, root: Setting | None, problems: list[str]) -> None:
    """Take the bucket from the artifact root: artifacts are at the top of a bucket here."""
    if not root:
        return
    store = found.files.setdefault("object_store.yml", {})
    bucket = re.fullmatch(r"s3://([^/]+)/?", str(root.value))
    if not bucket or store.setdefault("mlflow_object_store_bucket", bucket[1]) != bucket[1]:
        problems.append(f"{root.name} (line {root.line}) is not the top of the bucket; expected s3://<bucket>/")


def files_of(found: Inventory) -> dict[str, dict]:
    """The variables of an inventory by the path of their file, each with its value and the YAML that says it."""
    folder = f"group_vars/{found.environment}"
    files = {f"{folder}/{name}": variables for name, variables in found.files.items()}
    if found.secrets:
        files[f"{folder}/{VAULT}"] = {SECRETS: found.secrets}
    return {
        path: {name: {"value": value, "yaml": yaml_of({name: value})} for name, value in variables.items()}
        for path, variables in files.items()
        if variables
    }


def yaml_of(variables: dict) -> str:
    """Variables as YAML that Ansible reads back as it is: what looks like a template is none."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """PyYAML's own in Python, whose output is the same with and without libyaml."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        is_template = any(sign in text for sign in ("{{", "{%", "{#"))
        return dumper.represent_scalar("!unsafe" if is_template else "tag:yaml.org,2002:str", text)

    Dumper.add_representer(str, represent)
    return yaml.dump(variables, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=False)
