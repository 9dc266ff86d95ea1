"""Whatever a name or a secret has in it, the real reader of each layer gets back what was written."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.ansible_mlflow.database import quoted
from conftest import ROOT, load_filter
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

environment = load_filter("mlflow_environment")
manifest = load_filter("mlflow_manifest")
server = load_filter("mlflow_server")
backup = load_filter("mlflow_backup")

PERCENT, DOLLAR = "p%41&x/y@z#1", "a$(PGHOST)b \"c' |d=\\"
TEXT = st.text(st.characters(codec="utf-8"))
# What a name of a database or a role may be; see environment_problems.
LINE = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))
NAME = st.text(LINE, min_size=1, max_size=15).filter(environment.is_identifier)
# YAML lets the key of a mapping on one line be 1,024 characters long.
KEY = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda kids: st.lists(kids) | st.dictionaries(KEY, kids)
)
# One start of a shell is enough for many names.
NAMES = st.lists(NAME, min_size=1, max_size=30)


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\rb", "\0", "a\x7fb", "\ud83d", "\u2028", "", "ü" * 32])
def test_a_name_that_a_line_cannot_carry_is_refused(name: str) -> None:
    assert not environment.is_identifier(name)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
@settings(max_examples=30)
@given(JSON)
@example({"a": "\U0001f600 \x85 \u2028 \ufeff \x7f # : - {{ }}"})
def test_yaml_reads_back_every_value_on_one_line(loader: type, value: object) -> None:
    text = manifest.yaml_text(value)
    assert text.isascii()
    assert "\n" not in text
    assert yaml.load(f"- {{key: {text}}}", loader) == [{"key": value}]


def expanded(value: str, variables: dict[str, str]) -> str:
    """A value as kubelet reads it: $$ is $, $(NAME) is a variable that is there, and everything else is itself."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]),
        value,
    )


@given(TEXT)
@example(PERCENT)
@example(DOLLAR)
@example("$$(PGHOST)$")
def test_a_containers_variable_is_what_was_meant(value: str) -> None:
    text = manifest.variable_text(value)
    assert expanded(yaml.safe_load(text), {"PGHOST": "somewhere", "": "nothing"}) == value


@given(NAME, NAME)
@example(PERCENT, DOLLAR)
def test_libpq_reads_the_names_out_of_an_address(username: str, database: str) -> None:
    uri = server.database_uri(database, host="postgres", port=5432, username=username)
    found = conninfo_to_dict(uri.replace("postgresql+psycopg2://", "postgresql://"))
    assert found == {"user": username, "dbname": database, "host": "postgres", "port": "5432"}


@given(NAME, NAME)
@example(PERCENT, DOLLAR)
def test_configparser_reads_the_address_out_of_the_ini_file(username: str, database: str) -> None:
    uri = server.database_uri(database, host="postgres", port=5432, username=username)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(server.basic_auth_ini({"database_uri": uri, "default_permission": "READ"}))
        file.flush()
        parser = configparser.ConfigParser()
        parser.read(file.name)
    assert dict(parser["mlflow"]) == {"database_uri": uri, "default_permission": "READ"}


@given(NAME)
@example(DOLLAR)
def test_an_identifier_is_quoted_as_psycopg_quotes_it(name: str) -> None:
    assert quoted(name) == sql.Identifier(name).as_string()


def shell(program: str, *arguments: str) -> bytes:
    """What a program prints that has the functions of the backup's programs."""
    files = ROOT / "roles/mlflow_backup/files"
    done = subprocess.run(
        ["sh", "-euc", f'. "{files}/postgres.sh"\n{program}', "sh", *arguments],
        env={"PATH": "/usr/bin:/bin", "MLFLOW_BACKUP_WORK": "/nonexistent"},
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout


@settings(max_examples=20)
@given(NAMES)
@example([PERCENT, DOLLAR, "-n", "*", "~", "\\n", " a ", "`id`"])
def test_a_shell_reads_the_names_out_of_the_list_of_databases(names: list[str]) -> None:
    lists = [
        backup.targets({"tracking": name}, host="postgres", port=5432, username=names[-1]).rstrip("\n")
        for name in names
    ]
    program = 'for line; do take "$line"; printf "%s\\0%s\\0" "$PGDATABASE" "$PGUSER"; done'
    read = shell(program, *lists).decode().split("\0")[:-1]
    assert read == [text for name in names for text in (name, names[-1])]


@settings(max_examples=20)
@given(NAMES)
@example([PERCENT, DOLLAR, "'", "''", "\\'", "$(exit 1)", "`exit 1`", "*"])
def test_a_shell_reads_the_rows_of_a_query_as_arguments(names: list[str]) -> None:
    program = 'ask() { answer=$rows; }; rows=$1; each_line --schema= ""; eval "set -- $answer"; printf "%s\\0" "$@"'
    assert shell(program, "\n".join(names)).decode().split("\0")[:-1] == [f"--schema={name}" for name in names]


@settings(max_examples=20)
@given(NAMES)
@example([PERCENT, DOLLAR, '"', "\\", '\\"'])
def test_a_shells_report_is_json(names: list[str]) -> None:
    # White space becomes one space, as in every message.
    words = " ".join(" ".join(names).split(" ")).strip()
    assert json.loads(shell('quoted "$1"', words)).split() == words.split()


def test_no_template_writes_a_variables_value_but_by_a_writer() -> None:
    """What comes from the inventory into the `value` of a container's variable, in every template."""
    for template in Path(ROOT / "roles").glob("*/templates/*.j2"):
        text = template.read_text()
        for expression in re.findall(r"value: \{\{(.*?)\}\}(?:\}|\n)", text, re.DOTALL):
            written = re.search(r"\| (mlflow_variable|to_json)\s*$", expression)
            assert written, f"{template}: {expression}"
            # Names that an inventory is free to choose.
            if re.search(r"username|targets|schema \|", expression) and "database_uri" not in expression:
                assert written[1] == "mlflow_variable", f"{template}: {expression}"
