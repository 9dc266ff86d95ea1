"""What Terraform was told becomes an inventory that says the same; no secret of it is shown or left in plain text."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.hcl import read
from ansible.module_utils.ansible_mlflow.tfvars import KEYS, OTHER_NAMES, VAULT, inventory_of, yaml_of
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data/tfvars"
NODE_PORTS = {"dev": 30502, "stg": 30501, "prod": 30500}
# What a tfvars cannot say, since Terraform knows nothing of it.
UNSAID = {
    "dev": {"mlflow_environment_secrets_source", "mlflow_environment_production", "mlflow_gitops_automated"},
    "stg": {"mlflow_gitops_automated"},
    "prod": set(),
}
SECRETS = {
    "admin_password": "basic_auth_password",
    "database_password": "postgres_password",
    "object_store_access_key": "minio_access_key",
    "object_store_secret_key": "minio_secret_key",
    "flask_secret_key": "flask_secret_key",
}
# Texts as HCL, YAML and Jinja find them hard to carry.
TEXTS = st.text(st.characters(codec="utf-8")) | st.lists(
    st.sampled_from(
        [*"$%#\"'\\\n\r\t üa😀\x85\u2028\x00", "${", "$${", "%{", "%%{", "{{", "}}", "{%", "{#", "<<EOT", "EOT", "null"]
    )
).map("".join)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of inventories with what environments share, and a vault password beside it."""
    shutil.copytree(ROOT / "inventories/common", tmp_path / "inventories/common")
    (tmp_path / "password").write_text("the vault's own password\n")
    return tmp_path


def command(folder: Path, *line: str | Path) -> subprocess.CompletedProcess:
    """Run a command of Ansible in a folder, which keeps what it writes for its modules."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    settings = {"CONFIG": ROOT / "ansible.cfg", "KEEP_REMOTE_FILES": 1, "NOCOLOR": 1}
    settings |= {"LOCAL_TEMP": folder / "temporary", "REMOTE_TEMP": folder / "remote"}
    return subprocess.run(
        list(map(str, line)),
        cwd=folder,
        env=environment | {f"ANSIBLE_{name}": str(value) for name, value in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def take_over(folder: Path, tfvars: Path | str, *arguments: str, password: bool = True) -> subprocess.CompletedProcess:
    """Run the playbook."""
    variables = {"mlflow_import_tfvars": str(tfvars), "mlflow_import_inventories": "inventories"}
    return command(
        folder,
        "ansible-playbook",
        ROOT / "playbooks/import_tfvars.yml",
        f"--extra-vars={json.dumps(variables)}",
        *(["--vault-password-file=password"] if password else []),
        *arguments,
    )


def variables(folder: Path, inventory: Path, environment: str) -> dict:
    """A host's variables, as ansible-inventory resolves them."""
    done = command(
        folder,
        "ansible-inventory",
        "-i",
        inventory,
        "--host",
        f"mlflow-{environment}",
        "--vault-password-file=password",
    )
    return json.loads(done.stdout)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of the inventories, and every link."""
    found = [path for path in (folder / "inventories").rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in found}


def values(environment: str) -> dict:
    return {setting.name: setting.value for setting in read((DATA / f"{environment}.tfvars").read_text())}


def changed(done: subprocess.CompletedProcess) -> int:
    assert done.returncode == 0, done.stdout
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


@pytest.mark.parametrize("environment", ["dev", "stg", "prod"])
def test_an_imported_inventory_says_what_the_shipped_one_says(folder: Path, environment: str) -> None:
    assert changed(take_over(folder, DATA / f"{environment}.tfvars")) == 1
    imported = variables(folder, folder / "inventories" / environment, environment)
    shipped = variables(folder, ROOT / "inventories" / environment, environment)
    assert {name for name in shipped if imported.get(name) != shipped[name]} == UNSAID[environment]
    assert imported["mlflow_server_node_port"] == NODE_PORTS[environment]
    assert imported["mlflow_environment_secrets_source"] == "inventory"
    said = values(environment)
    assert imported["mlflow_environment_secrets"] == {name: said[key] for name, key in SECRETS.items()}

    # Each file has the name and the variables of the shipped one's, and no value that all environments share.
    own, shared = folder / f"inventories/{environment}", ROOT / "inventories" / environment
    for path in own.rglob("*.yml"):
        if path.name not in (VAULT, "server.yml", "environment.yml"):
            assert yaml.safe_load(path.read_text()) == yaml.safe_load((shared / path.relative_to(own)).read_text())

    before = files(folder)
    assert changed(take_over(folder, DATA / f"{environment}.tfvars")) == 0
    assert files(folder) == before


def test_no_secret_is_shown_nor_on_disk_in_plain_text(folder: Path) -> None:
    secrets = [values("prod")[key] for key in SECRETS.values() if key != "minio_access_key"]
    before = files(folder)
    dry = take_over(folder, DATA / "prod.tfvars", "--check", "--diff", "-vvvvv")
    assert changed(dry) == 1
    assert files(folder) == before
    done = take_over(folder, DATA / "prod.tfvars", "--diff", "-vvvvv")
    assert changed(done) == 1
    new = sorted(set(files(folder)) - set(before))
    names = ["database", "environment", "object_store", "server", "vault"]
    own = ["group_vars/all", *[f"group_vars/prod/{name}.yml" for name in names], "hosts.yml"]
    assert new == [f"inventories/prod/{name}" for name in own]
    for path in new:
        assert f"+++ after: {path}" in dry.stdout
        assert f"+++ after: {path}" in done.stdout
    assert "+mlflow_server_node_port: 30500" in dry.stdout
    # What was left in the modules' own folders is looked at too.
    left = [path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert any("mlflow_tfvars" in text for text in left)
    assert [name for name in secrets if any(name in text for text in (dry.stdout, done.stdout, *left))] == []
    vault = folder / f"inventories/prod/group_vars/prod/{VAULT}"
    assert vault.read_text().startswith("$ANSIBLE_VAULT;1.1;AES256\n")
    assert stat.S_IMODE(vault.stat().st_mode) == 0o600


def test_secrets_without_a_vault_password_are_refused(folder: Path) -> None:
    before = files(folder)
    done = take_over(folder, DATA / "prod.tfvars", password=False)
    assert done.returncode != 0
    assert "no vault password to encrypt them with; expected --ask-vault-pass" in done.stdout
    assert files(folder) == before


def test_without_secrets_no_password_is_needed_and_nothing_is_encrypted(folder: Path) -> None:
    (folder / "qa.tfvars").write_text('node_port = 30503\npostgres_host = "qa-postgres"\n')
    done = take_over(folder, "qa.tfvars", "-e", "mlflow_import_environment=qa", password=False)
    assert changed(done) == 1
    assert not (folder / f"inventories/qa/group_vars/qa/{VAULT}").exists()
    assert variables(folder, folder / "inventories/qa", "qa")["mlflow_database_host"] == "qa-postgres"


def test_what_nobody_knows_stops_the_run_until_it_may_be_left_out(folder: Path) -> None:
    (folder / "qa.tfvars").write_text('environment = "qa"\ntags = { team = "ml" }\npostgress_port = "hidden"\n')
    before = files(folder)
    done = take_over(folder, "qa.tfvars")
    assert done.returncode != 0
    assert "no variable is known for tags_team (line 2), postgress_port (line 3)" in " ".join(done.stdout.split())
    assert "hidden" not in done.stdout
    assert files(folder) == before
    done = take_over(folder, "qa.tfvars", "-e", '{"mlflow_import_leave_out": ["tags_team", "postgress_port"]}')
    assert changed(done) == 1
    assert "no variable for them: tags_team, postgress_port" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("present", "told"),
    [
        (
            {
                "database.yml": "mlflow_database_port: 1\n",
                "promoted.yml": "mlflow_server_node_port: 1\n",
                "server.yml": "mlflow_server_replicas: 2\nmlflow_server_workers: 1\n",
                "object_store.yml": "not-to-be-shown: [\n",
                VAULT: "mlflow_environment_secrets: {admin_password: not-to-be-shown}\n",
                "../../hosts.yml": "mlflow: {hosts: {a: }}\n",
            },
            [
                "database.yml says another mlflow_database_port; expected",
                "promoted.yml says another mlflow_server_node_port; expected",
                "server.yml is there, without mlflow_server_cpu_request, mlflow_server_cpu_limit, mlflow_server_memory",
                "object_store.yml cannot be read",
                "vault.yml has secrets in plain text",
                "vault.yml says another mlflow_environment_secrets.admin_password, mlflow_environment_secrets.data",
                "hosts.yml has no mlflow-prod in prod in mlflow",
            ],
        ),
        (
            {"server.yml": "mlflow_server_node_port: '{{ nowhere }}'\n", VAULT: "$ANSIBLE_VAULT;1.1;AES256\n3330\n"},
            ["server.yml says another mlflow_server_node_port", "vault.yml cannot be read"],
        ),
    ],
)
def test_what_is_there_is_never_overwritten(folder: Path, present: dict[str, str], told: list[str]) -> None:
    own = folder / "inventories/prod/group_vars/prod"
    own.mkdir(parents=True)
    for name, text in present.items():
        (own / name).write_text(text)
    before = files(folder)
    done = take_over(folder, DATA / "prod.tfvars")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert [words for words in told if words not in said] == []
    assert "not-to-be-shown" not in done.stdout
    assert files(folder) == before


def test_what_the_inventory_says_already_by_whatever_template_is_left_as_it_is(folder: Path) -> None:
    own = folder / "inventories/stg/group_vars/stg"
    own.mkdir(parents=True)
    (own / "database.yml").write_text(
        'mlflow_database_host: "{{ mlflow_environment_name }}-postgres.pgsql.svc.cluster.local"\n'
        "mlflow_database_port: 5433\nmlflow_database_tls_mode: require\n"
    )
    before = files(folder)
    assert changed(take_over(folder, DATA / "stg.tfvars")) == 1
    assert before.items() <= files(folder).items()


def test_another_folder_than_that_of_the_inventories_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "inventories/common")
    done = take_over(folder, DATA / "prod.tfvars")
    assert "inventories has no common/group_vars/all" in " ".join(done.stdout.split())
    assert files(folder) == {}


def quoted(text: str) -> str:
    """A text as HCL quotes it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("${", "$${"), ("%{", "%%{")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


@given(TEXTS, TEXTS)
def test_any_text_arrives_as_it_is_and_is_no_template(text: str, other: str) -> None:
    tfvars = f'environment = "qa"\npostgres_password = {quoted(text)}\nflask_secret_key = {quoted(other)} # }} {{\n'
    found = inventory_of(tfvars, "", []).secrets
    assert found == {"database_password": text, "flask_secret_key": other}
    loader = DataLoader()
    loaded = loader.load(trust_as_template(yaml_of({"secrets": found})))
    assert Templar(loader, variables=loaded).template(trust_as_template("{{ secrets }}")) == found


@given(TEXTS, st.sampled_from(["", "    ", "\t"]))
def test_a_heredoc_arrives_as_it_is(text: str, indent: str) -> None:
    text = re.sub(r"\r(?!\n)|EOT", "", text)
    inner = text.replace("${", "$${").replace("%{", "%%{")
    plain, trimmed, last = read(f"a = <<EOT\n{inner}\n{indent}EOT\nb = <<-EOT\n{indent}x\n{indent} y\nEOT\nc = 1\n")
    assert (plain.value, trimmed.value, last.value) == (f"{text}\n", "x\n y\n", 1)


def test_literals_of_every_kind_are_read() -> None:
    found = read(
        '# a comment\n/* and\nanother */\na = -5 // one more\nb = [1, "x",\n  true, # in between\n]\nc = null\n'
        'd = { e = 1.5, "f g" : { h = false } }\n\ni = "\\u00fc\\U0001F600"\n'
    )
    assert [(setting.name, setting.line, setting.value) for setting in found] == [
        ("a", 4, -5),
        ("b", 5, [1, "x", True]),
        ("d_e", 9, 1.5),
        ("d_f g_h", 9, False),
        ("i", 11, "ü😀"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = 1\nb = var.c\n", "line 2: an expression"),
        ("a = b\n", "line 1: a reference"),
        ('a = file("secret")\n', "line 1: a function"),
        ('a = "x-${b}"\n', "line 1: a template"),
        ('a = "%{ if b }x%{ endif }"\n', "line 1: a template"),
        ("a = <<EOT\n${b}\nEOT\n", "line 1: a template"),
        ('a = "$$${secret}"\nb = "$${\nc = ${d}"\n', "line 2: a text without an end"),
        ("a = 1 + 1\n", "line 1: an expression"),
        ("a = [\n  1,\n  b\n]\n", "line 3: a reference"),
        ('a = [{ b = "secret" }]\n', "line 1: a map in a list"),
        ('a "secret" {\n}\n', "line 1: a block"),
        ('a = "sec\nret"\n', "line 1: a text without an end"),
        ('a = "secret\\q"\n', "line 1: a backslash that HCL does not know"),
        ('a = "\\ud800"\n', "line 1: a backslash that HCL does not know"),
        ('a = 1\n\na = "secret"\n', "line 3: a is given a second time, after line 1"),
        ('a = "b"\nc = "secret\n', "it is no HCL at"),
        ("secret\n", "it is no HCL at line"),
        ("a = <<EOT\nsecret\nEOT \nEOT\n", "line 1: a second EOT"),
        ("a = 1\nb = 2 \r c = 3\n", "line 2: a carriage return"),
    ],
)
def test_what_is_not_literal_is_refused_by_its_line(text: str, told: str) -> None:
    with pytest.raises(Error) as refused:
        read(text)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no environment; expected its name in mlflow_import_environment"),
        ('environment = "../up"\n', "lower case letters, digits and inner hyphens"),
        ('environment = "common"\n', "is one of all, common"),
        ('environment = "qa"\nreplicas = "hidden"\n', "replicas (line 2) is something else; expected a whole number"),
        ('environment = "qa"\npostgres_password = ["hidden"]\n', "postgres_password (line 2) is something else"),
        ('environment = "qa"\ncpu_limit = "1500m"\n', "expected whole cores, such as 2 or 2000m"),
        ('environment = "qa"\nmemory_limit = "2G"\n', "expected memory in Mi or Gi"),
        ('environment = "qa"\nallowed_hosts = "hidden"\n', "expected a list of texts"),
        ('environment = "qa"\nnode_port = 1\nmlflow_node_port = 2\n', "are the same; expected one of them"),
        (
            'environment = "qa"\npostgres_db = "hidden"\npostgres_database = "b"\n',
            "two values for mlflow_database_name",
        ),
        ('environment = "qa"\nimage_tag = "v3"\n', "image_tag (line 2) is given; expected an image beside it"),
        ('environment = "qa"\nimage = "m:v2"\nimage_tag = "v3"\n', "that has no tag yet"),
        ('environment = "qa"\nartifact_root = "s3://mlflow/hidden"\n', "expected s3://<bucket>/"),
        ('environment = "qa"\nminio_bucket = "b"\nartifact_root = "s3://hidden"\n', "is not the top of the bucket"),
    ],
)
def test_what_cannot_be_taken_over_is_told_without_its_value(text: str, told: str) -> None:
    with pytest.raises(Error) as refused:
        inventory_of(text, "", [])
    assert told in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_another_environment_than_the_one_asked_for_is_refused() -> None:
    with pytest.raises(Error, match=r"environment \(line 1\) is not mlflow_import_environment; expected prod"):
        inventory_of('environment = "stg"\n', "prod", [])


def test_values_are_read_as_terraform_reads_them() -> None:
    found = inventory_of(
        'mlflow_replicas = "3"\nimage_repository = "localhost:5000/mlflow"\nimage_tag = "v3"\ncpu_limit = "2000m"\n'
        'memory_limit = "2Gi"\npostgres_password = 123456789012\ns3_endpoint = "http://minio:9000/"\n'
        'artifact_root = "s3://runs"\nallowed_hosts = ["a", "b"]\nkubeconfig = null\nminio_root_user = "root"\n',
        "qa",
        [],
    )
    assert found.files == {
        "environment.yml": {
            "mlflow_environment_name": "qa",
            "mlflow_environment_secrets_source": "inventory",
            "mlflow_environment_image": "localhost:5000/mlflow:v3",
        },
        "object_store.yml": {
            "mlflow_object_store_endpoint": "http://minio:9000",
            "mlflow_object_store_bucket": "runs",
        },
        "server.yml": {
            "mlflow_server_replicas": 3,
            "mlflow_server_cpu_limit": 2,
            "mlflow_server_memory_limit": 2048,
            "mlflow_server_extra_allowed_hosts": ["a", "b"],
        },
    }
    assert found.secrets == {"database_password": "123456789012", "object_store_admin_access_key": "root"}


def test_every_variable_of_the_table_is_one_of_a_role_or_a_secret() -> None:
    specifications = [yaml.safe_load(path.read_text()) for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")]
    known = {name for specification in specifications for name in specification["argument_specs"]["main"]["options"]}
    rules = load_filter("mlflow_secrets").RULES
    assert [entry[1] for entry in KEYS if entry[1] not in (rules if entry[0] == VAULT else known)] == []


def test_the_page_lists_every_name_beside_its_variable() -> None:
    rows = [line for line in (ROOT / "docs/terraform.md").read_text().splitlines() if line.startswith("| `")]
    for _, variable, _, names in KEYS:
        [row] = [row for row in rows if f"| `{variable}`" in row]
        assert [name for name in names if f"`{name}`" not in row] == []
    assert [name for name in OTHER_NAMES if not any(f"`{name}`" in row for row in rows)] == []
