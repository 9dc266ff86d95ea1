"""The parts of the database module that need no database: names, verifiers, words for refusals."""

from __future__ import annotations

import pytest
from ansible.module_utils.ansible_mlflow import database
from ansible.module_utils.ansible_mlflow.database import (
    Server,
    Wanted,
    check_identifier,
    quoted,
    refusal,
    scram_matches,
    sql_for_administrator,
)
from ansible.module_utils.ansible_mlflow.errors import Error
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


def test_the_statements_for_an_administrator_show_no_password():
    wanted = Wanted('ml"flow', "s3cret-s3cret", ["mlflow"])
    statements = sql_for_administrator(wanted, wanted.databases)
    assert 'CREATE ROLE "ml""flow" LOGIN' in statements
    assert 'CREATE DATABASE "mlflow" OWNER "ml""flow"' in statements
    assert "s3cret" not in statements


def test_a_tunnel_keeps_the_servers_name_for_tls(monkeypatch):
    import psycopg

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
