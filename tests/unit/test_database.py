"""The parts of the database module that need no database: names, verifiers, words for refusals, and what is planned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psycopg
import pytest
from ansible.module_utils.ansible_mlflow import database
from ansible.module_utils.ansible_mlflow.database import Role, Server, Tls, Wanted, check_identifier, quoted, refusal
from ansible.module_utils.ansible_mlflow.database_check import Check
from ansible.module_utils.ansible_mlflow.database_contents import Facts, plan, refuse_elsewhere, refuse_occupied
from ansible.module_utils.ansible_mlflow.database_roles import scram_matches
from ansible.module_utils.ansible_mlflow.errors import Error
from conftest import certificate
from hypothesis import given, settings
from hypothesis import strategies as st


def verifier(password: str, salt: bytes = b"0123456789abcdef", rounds: int = 64) -> str:
    """A verifier as RFC 5803 describes it, made independently of the code under test by libpq's own algorithm."""
    from base64 import b64encode
    from hashlib import pbkdf2_hmac, sha256
    from hmac import new

    salted = pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = sha256(new(salted, b"Client Key", sha256).digest()).digest()
    server = new(salted, b"Server Key", sha256).digest()
    return (
        f"SCRAM-SHA-256${rounds}:{b64encode(salt).decode()}${b64encode(stored).decode()}:{b64encode(server).decode()}"
    )


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)


@settings(max_examples=30)
@given(ASCII, ASCII, st.binary(min_size=1, max_size=32))
def test_a_verifier_matches_its_password_and_no_other(password, other, salt):
    assert scram_matches(verifier(password, salt), password) is True
    assert scram_matches(verifier(password, salt), other) is (other == password)


@pytest.mark.parametrize("text", ["", "md5abcdef", "SCRAM-SHA-256$broken", None])
def test_another_kind_of_verifier_is_not_judged(text):
    assert scram_matches(text, "password") is None


def test_a_password_that_postgresql_would_normalise_is_not_judged():
    assert scram_matches(verifier("Passwörter"), "Passwörter") is None


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("", "username"),
        ("a\0b", "databases"),
        ("ü" * 32, "databases"),
        ("x" * 64, "username"),
        ("pg_mlflow", "username"),
        ("pg_mlflow", "migrator_username"),
    ],
)
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused(name, option):
    with pytest.raises(Error, match=option):
        check_identifier(name, option)


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=15))
def test_every_other_name_is_taken_and_quoted(name):
    check_identifier(name, "databases")
    inner = quoted(name)
    assert inner[0] == inner[-1] == '"'
    assert inner[1:-1].replace('""', "") == name.replace('"', "")
    assert inner[1:-1].count('"') % 2 == 0


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        ('FATAL:  password authentication failed for user "m"', "28P01", "the password is wrong"),
        ('FATAL:  database "mlflow" does not exist', "3D000", "does not exist"),
        ('FATAL:  permission denied for database "mlflow"', "42501", "may not connect"),
        ('FATAL:  role "m" is not permitted to log in', "28000", "may not log in"),
        ("FATAL:  no pg_hba.conf entry for host", "28000", "pg_hba.conf"),
        ("server does not support SSL, but SSL was required", "", "it offers no TLS"),
        ("SSL error: certificate verify failed", "", "not signed by mlflow_database_ca_certificate"),
        ("SSL error: provider signature failure", "", "not signed by mlflow_database_ca_certificate"),
        ('server certificate for "a" does not match host name "b"', "", "for another name than mlflow_database_host"),
        (
            'server certificate for "a" (and 2 other names) does not match host name "b"',
            "",
            "for another name than mlflow_database_host",
        ),
        ("FATAL:  sorry, too many clients already", "53300", "no free connections"),
        ("FATAL:  the database system is starting up", "57P03", "starting up"),
        ("connection failed: Connection refused\n\tIs the server running", "", "refused"),
        ("connection timeout expired", "", "within 10 s"),
        ("[Errno -2] Name or service not known", "", "cannot be resolved"),
        ("server closed the connection unexpectedly", "", "closed the connection"),
        ("something\n  new", "", "something new"),
    ],
)
def test_a_refused_connection_is_told_in_plain_words(text, state, words):
    found_state, told = refusal(text)
    assert found_state == state
    assert words in told
    assert "\n" not in told


RUNTIME = Role("username", "database_password", "mlflow", "s3cret-runtime")
MIGRATOR = Role("migrator_username", "database_migrator_password", "mig", "s3cret-migrator")
WANTED = Wanted(RUNTIME, MIGRATOR, ["tracking", "auth"])
OWNER = {"mig CONNECT", "mig CREATE", "mig TEMPORARY"}
PUBLIC_SCHEMA = {"pg_database_owner USAGE", "pg_database_owner CREATE", " USAGE"}


def facts(**others) -> Facts:
    """A database as it should be, but for some things."""
    right = {
        "name": "tracking",
        "owner": "mig",
        "rights": OWNER | {"mlflow CONNECT"},
        "schema_owner": "pg_database_owner",
        "schema_rights": PUBLIC_SCHEMA,
    }
    return Facts(**(right | others))


def item(kind: str, bare: str, owner: str = "mlflow", follows: bool = False) -> dict:
    return {"kind": kind, "name": f"public.{bare}", "bare": bare, "owner": owner, "follows": follows}


def test_a_database_as_it_should_be_needs_nothing():
    assert plan(facts(), WANTED) == []


def test_an_old_database_is_given_away_with_all_that_is_in_it_and_the_server_goes_on_using_it():
    objects = [
        item("TABLE", "runs"),
        item("TABLE", "alembic_version"),
        item("SEQUENCE", "runs_id_seq", follows=True),
        item("ROUTINE", "f"),
    ]
    old = {"owner": "mlflow", "rights": {"mlflow CONNECT", "mlflow CREATE", "mlflow TEMPORARY"}, "objects": objects}
    [change] = plan(facts(**old), WANTED)
    assert change.sentence == "gave database tracking with 3 objects from mlflow to mig"
    assert change.problem
    assert change.statements == [
        'ALTER DATABASE "tracking" OWNER TO "mig"',
        'ALTER TABLE public.runs OWNER TO "mig"',
        'ALTER TABLE public.alembic_version OWNER TO "mig"',
        'ALTER ROUTINE public.f OWNER TO "mig"',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE public.runs TO "mlflow"',
        'GRANT SELECT ON TABLE public.alembic_version TO "mlflow"',
        'GRANT USAGE, SELECT ON SEQUENCE public.runs_id_seq TO "mlflow"',
        # What an owner was granted passes to the next owner, the right to connect included.
        'GRANT CONNECT ON DATABASE "tracking" TO "mlflow"',
    ]


@pytest.mark.parametrize(
    ("others", "sentence", "statement"),
    [
        (
            {"objects": [item("TABLE", "runs", "postgres")]},
            "gave 1 object of database tracking from postgres to mig",
            'ALTER TABLE public.runs OWNER TO "mig"',
        ),
        (
            {"rights": OWNER | {"mlflow CONNECT", " TEMPORARY"}},
            "closed database tracking to other roles",
            'REVOKE ALL ON DATABASE "tracking" FROM PUBLIC',
        ),
        (
            {"rights": OWNER | {"mlflow CONNECT", "mlflow CREATE"}},
            "took from mlflow the right to create in database tracking",
            'REVOKE CREATE, TEMPORARY ON DATABASE "tracking" FROM "mlflow"',
        ),
        (
            {"rights": {"mlflow CONNECT"}},
            "restored the owner's rights on database tracking",
            'GRANT ALL ON DATABASE "tracking" TO "mig"',
        ),
        (
            {"rights": OWNER},
            "let mlflow connect to database tracking",
            'GRANT CONNECT ON DATABASE "tracking" TO "mlflow"',
        ),
        (
            {"schema_rights": PUBLIC_SCHEMA | {"mlflow CREATE"}},
            "took from mlflow the right to create in schema public of database tracking",
            'REVOKE CREATE ON SCHEMA public FROM "mlflow"',
        ),
        (
            {"schema_rights": {" USAGE"}},
            "restored the rights on schema public of database tracking",
            'GRANT USAGE, CREATE ON SCHEMA public TO "pg_database_owner"',
        ),
        (
            {"schema_rights": {"pg_database_owner USAGE", "pg_database_owner CREATE"}},
            "let mlflow use schema public of database tracking",
            'GRANT USAGE ON SCHEMA public TO "mlflow"',
        ),
    ],
)
def test_what_differs_is_put_right_and_nothing_else(others, sentence, statement):
    [change] = plan(facts(**others), WANTED)
    assert change.sentence == sentence
    assert change.statements[0] == statement


def test_in_a_schema_of_before_postgresql_15_the_migrator_alone_may_create():
    everybody = {"postgres USAGE", "postgres CREATE", " USAGE", " CREATE"}
    changes = plan(facts(schema_owner="postgres", schema_rights=everybody), WANTED)
    assert [change.statements for change in changes] == [
        ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"],
        ['GRANT USAGE, CREATE ON SCHEMA public TO "mig"'],
    ]


def test_a_schema_that_is_gone_is_made_again_and_may_be_used():
    changes = plan(facts(schema_owner=None, schema_rights=set()), WANTED)
    assert [change.statements for change in changes] == [
        ["CREATE SCHEMA public AUTHORIZATION pg_database_owner"],
        ['GRANT USAGE ON SCHEMA public TO "mlflow"'],
    ]


def test_a_schema_of_its_own_is_made_for_the_migrator_and_opened_to_the_servers():
    wanted = dataclasses.replace(WANTED, schema='my "own"')
    changes = plan(facts(schema_owner=None, schema_rights=set()), wanted)
    assert [change.statements for change in changes] == [
        ['CREATE SCHEMA "my ""own""" AUTHORIZATION "mig"'],
        ['GRANT USAGE ON SCHEMA "my ""own""" TO "mlflow"'],
    ]
    own = {"schema_owner": "mig", "schema_rights": {"mig USAGE", "mig CREATE", "mlflow USAGE"}}
    assert plan(facts(**own), wanted) == []
    [change] = plan(facts(**own, everybody_creates=True), wanted)
    assert change.statements == ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"]


def test_a_database_says_whose_it_is_and_another_comment_is_left_alone():
    wanted = dataclasses.replace(WANTED, environment="dev")
    [change] = plan(facts(), wanted)
    assert change.statements == ["""COMMENT ON DATABASE "tracking" IS 'MLflow environment dev'"""]
    for comment in ("MLflow environment dev", "ours"):
        assert plan(facts(comment=comment), wanted) == []
        refuse_occupied("tracking", comment, wanted)
    with pytest.raises(
        Error, match=r'is that of environment prod, and this is dev; .* COMMENT ON DATABASE "tracking" IS'
    ):
        refuse_occupied("tracking", "MLflow environment prod", wanted)


def test_a_schema_of_somebody_else_is_left_alone():
    with pytest.raises(Error, match="belongs to role theirs, not to mig; it is left alone"):
        plan(facts(schema_owner="theirs"), dataclasses.replace(WANTED, schema="own"))


@pytest.mark.parametrize(
    ("found", "wanted", "setting"),
    [(["public"], "own", '""'), (["own"], "public", "own"), (["one", "two"], "three", "one")],
)
def test_a_schema_is_not_begun_beside_one_that_is_in_use(found, wanted, setting):
    with pytest.raises(Error, match=f"expected mlflow_database_schema: {setting}, or"):
        refuse_elsewhere("tracking", dataclasses.replace(WANTED, schema=wanted), found)
    refuse_elsewhere("tracking", WANTED, [])


@pytest.mark.parametrize("schema", ["", "pg_own", "$user", "information_schema", "x" * 64])
def test_a_schema_that_cannot_be_is_refused(schema):
    with pytest.raises(Error, match="schema: "):
        dataclasses.replace(WANTED, schema=schema).check()


def test_the_statements_for_an_administrator_are_in_order_and_show_no_password(monkeypatch):
    def refuse(**arguments):
        raise psycopg.OperationalError("password authentication failed")

    monkeypatch.setattr(psycopg, "connect", refuse)
    with pytest.raises(Error) as refused:
        Check(Server("pg", 5432, ("pg", 5432)), WANTED).apply()
    for secret in ("database_password", "database_migrator_password"):
        assert f"mlflow_environment_secrets.{secret}" in str(refused.value)
    statements = [line for line in refused.value.details["sql"].splitlines() if not line.startswith("--")]
    assert statements == [
        "CREATE ROLE \"mig\" LOGIN PASSWORD '<database_migrator_password>';",
        "CREATE ROLE \"mlflow\" LOGIN PASSWORD '<database_password>';",
        'GRANT "mlflow" TO "mig";',
        'GRANT "mig", "mlflow" TO CURRENT_USER;',
        *[
            statement
            for name in ("tracking", "auth")
            for statement in (
                f'CREATE DATABASE "{name}" OWNER "mig" ENCODING \'UTF8\' TEMPLATE template0;',
                f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC;',
                f'GRANT CONNECT ON DATABASE "{name}" TO "mlflow";',
            )
        ],
    ]
    assert "s3cret" not in str(refused.value) + refused.value.details["sql"] + repr(WANTED)


def test_a_tunnel_keeps_the_servers_name_for_tls(monkeypatch):
    seen = {}

    def refuse(**arguments):
        seen.update(arguments)
        raise psycopg.OperationalError("Connection refused")

    monkeypatch.setattr(psycopg, "connect", refuse)
    behind_tunnel = Server("pg.pgsql.svc", 5434, ("127.0.0.1", 40000))
    with (
        pytest.raises(database.ConnectError, match=r"PostgreSQL pg\.pgsql\.svc:5434, database d, user u: .* refused"),
        database.connect(behind_tunnel, "u", "p", "d"),
    ):
        pass
    assert (seen["host"], seen["hostaddr"], seen["port"]) == ("pg.pgsql.svc", "127.0.0.1", 40000)
    assert seen["connect_timeout"] <= 10
    assert (seen["sslmode"], "sslrootcert" in seen) == ("prefer", False)


def test_the_authority_is_in_a_file_while_it_is_needed(monkeypatch):
    text, seen = certificate(), {}

    def refuse(**arguments):
        seen.update(arguments, read=Path(arguments["sslrootcert"]).read_text())
        raise psycopg.OperationalError("certificate verify failed")

    monkeypatch.setattr(psycopg, "connect", refuse)
    tls = Tls("verify-full", text)
    tls.check()
    with (
        pytest.raises(database.ConnectError, match="mlflow_database_ca_certificate"),
        database.connect(Server("pg", 5432, ("127.0.0.1", 1), tls), "u", "p", "d"),
    ):
        pass
    assert (seen["sslmode"], seen["read"]) == ("verify-full", text)
    assert not Path(seen["sslrootcert"]).exists()


@pytest.mark.parametrize(
    ("mode", "text", "words"),
    [
        ("verify-full", "", "needs the certificate"),
        ("verify-ca", "nonsense", "expected certificates as PEM text"),
        ("verify-ca", "-----BEGIN PRIVATE KEY-----", "got a private key"),
        ("require", "anything", "does not look at it"),
    ],
)
def test_an_authority_that_is_none_is_refused(mode, text, words):
    with pytest.raises(Error, match="ca_certificate: ") as refused:
        Tls(mode, text).check()
    assert words in str(refused.value)
