"""Secrets out of the KV v2 engine of HashiCorp Vault or OpenBao.

The connection and the logins are those of the collection community.hashi_vault. Its own module vault_kv2_get ends with
a traceback where a server is sealed, away or refuses a login, which is when people need a sentence.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from .errors import Error, MissingLibraryError, one_line

# A request; a run makes three of them, and is to end within 10 seconds where the server does not answer.
TIMEOUT_SECONDS = 4
# The variables that a login takes its credentials from, as people know them.
CREDENTIALS = {
    "token": "mlflow_environment_vault_token (VAULT_TOKEN, or ~/.vault-token from `vault login`)",
    "approle": "mlflow_environment_vault_role_id and _secret_id (VAULT_ROLE_ID, VAULT_SECRET_ID)",
    "kubernetes": "mlflow_environment_vault_role_id and the token in mlflow_environment_vault_jwt_file",
}


def read(settings: dict, engine: str, paths: list[str]) -> dict[str, dict]:
    """The data of secrets by path.

    :param settings: ``url``, ``auth_method`` and what it needs; see the module mlflow_vault.
    :raises Error: with the variable, what is wrong and what is expected.
    """
    check(settings)
    try:
        import hvac.exceptions
        import requests.exceptions
        from ansible_collections.community.hashi_vault.plugins.module_utils import (
            _authenticator,
            _connection_options,
            _hashi_vault_common,
        )
    except ImportError as error:
        raise MissingLibraryError("hvac", str(error)) from None

    adapter = _hashi_vault_common.HashiVaultOptionAdapter.from_dict(options(settings))
    connection = _connection_options.HashiVaultConnectionOptions(adapter)
    authenticator = _authenticator.HashiVaultAuthenticator(adapter, ignore, ignore)
    step = f"the login by {settings['auth_method']}"
    try:
        connection.process_connection_options()
        client = _hashi_vault_common.HashiVaultHelper().get_vault_client(**connection.get_hvac_connection_options())
        authenticator.validate()
        authenticator.authenticate(client)
        step, found = "", {}
        for path in paths:
            step = path
            answer = client.secrets.kv.v2.read_secret_version(path, mount_point=engine, raise_on_deleted_version=True)
            found[path] = answer["data"]["data"]
        return found
    except _hashi_vault_common.HashiVaultValueError as error:
        wrong = "the token is revoked, expired or another server's" if "Invalid" in str(error) else "there are none"
        raise Error(
            f"{at(settings)}: no valid credentials for {step}: {wrong}; expected them in "
            f"{CREDENTIALS[settings['auth_method']]}"
        ) from None
    except hvac.exceptions.VaultError as error:
        raise Error(f"{at(settings)}{refusal(error, settings, engine, step)}") from None
    except requests.exceptions.SSLError as error:
        raise Error(
            f"{at(settings)}: its certificate is not accepted ({innermost(error)}); expected one that the CA in "
            f"mlflow_environment_vault_ca_file has signed, or one of the system's"
        ) from None
    except requests.exceptions.RequestException as error:
        raise Error(
            f"{at(settings)} cannot be reached ({innermost(error)}); expected a server at "
            f"mlflow_environment_vault_address (VAULT_ADDR)"
        ) from None
    except OSError as error:
        raise Error(f"mlflow_environment_vault_ca_file: {one_line(error)}; expected a file of certificates") from None
    except (KeyError, TypeError, ValueError):
        raise Error(
            f"{at(settings)} answers, but not as Vault does; expected Vault or OpenBao at "
            f"mlflow_environment_vault_address (VAULT_ADDR)"
        ) from None


def check(settings: dict) -> None:
    """Refuse an address that is none."""
    try:
        parts = urlsplit(settings["url"])
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        fine = False
    if not fine or any(character.isspace() for character in settings["url"]):
        raise Error(
            "mlflow_environment_vault_address (VAULT_ADDR) is no address of a server; expected "
            "http(s)://host[:port] without a user"
        )


def options(settings: dict) -> dict:
    """The options of community.hashi_vault for these settings; None is what was not given."""
    from ansible_collections.community.hashi_vault.plugins.module_utils import _authenticator, _connection_options

    specification = {
        **_connection_options.HashiVaultConnectionOptions.ARGSPEC,
        **_authenticator.HashiVaultAuthenticator.ARGSPEC,
    }
    given = {name: value for name, value in settings.items() if value}
    if given["auth_method"] == "kubernetes":
        # Kubernetes' login takes what JWT's does, a role and a token, elsewhere.
        given = {"mount_point": "kubernetes", **given, "auth_method": "jwt"}
    return {
        **{name: option.get("default") for name, option in specification.items()},
        **given,
        "timeout": TIMEOUT_SECONDS,
        # Whether a server's certificate is looked at is nothing that VAULT_SKIP_VERIFY decides here.
        "validate_certs": True,
        "token_validate": True,
    }


def refusal(error: Exception, settings: dict, engine: str, step: str) -> str:
    """What a refusal of Vault means for the settings."""
    import hvac.exceptions

    login, words = step.startswith("the login by "), vaults_words(error)
    if isinstance(error, hvac.exceptions.VaultDown):
        if "sealed" in words:
            return " is sealed; expected an unsealed one: somebody has to unseal it"
        return f" is down or has no active node ({words})"
    if isinstance(error, hvac.exceptions.VaultNotInitialized):
        return " is not initialized; expected one that is, and unsealed"
    if isinstance(error, (hvac.exceptions.InternalServerError, hvac.exceptions.BadGateway)):
        return f" fails ({words})"
    if login:
        mount = settings.get("mount_point") or settings["auth_method"]
        where = "" if settings["auth_method"] == "token" else f" at auth/{mount}"
        return f" refuses {step}{where} ({words}); expected valid {CREDENTIALS[settings['auth_method']]}"
    if isinstance(error, hvac.exceptions.InvalidPath):
        return (
            f" has no secret {step} in the KV v2 engine {engine}; expected one at mlflow_environment_vault_path in "
            f"mlflow_environment_vault_engine"
        )
    if isinstance(error, hvac.exceptions.Forbidden):
        return (
            f" denies reading secret {step} of the engine {engine}; expected a policy that allows read on "
            f"{engine}/data/{step}"
        )
    return f" refuses to read secret {step} of the engine {engine} ({words})"


def vaults_words(error: Exception) -> str:
    """What Vault itself said, in one line."""
    return one_line("; ".join(getattr(error, "errors", None) or [str(error)]), limit=200)


def at(settings: dict) -> str:
    """How the server is called in sentences."""
    return f"Vault at {settings['url']}"


def innermost(error: BaseException) -> str:
    """The last cause of a failed connection, in one line: what wraps it says it again, and longer."""
    while True:
        candidates = (getattr(error, "reason", None), *error.args[:1], error.__cause__)
        inner = next((candidate for candidate in candidates if isinstance(candidate, BaseException)), None)
        if inner is None:
            return one_line(getattr(error, "strerror", None) or error, limit=200)
        error = inner


def ignore(*_args, **_kwargs) -> None:
    """Take a warning of the collection: that hvac is old, which is pinned here."""
