"""Lets the tests import library/ and module_utils/ as Ansible does, and run a module as a task would."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import ansible.module_utils._internal
import ansible.module_utils.common.warnings
import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))

# How fast a busy machine is says nothing about the code.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


def load_file(path: Path, name: str = "") -> ModuleType:
    """Import a file that is in no package, under its own name or another one."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_filter(name: str) -> ModuleType:
    """Import a filter file by its path, as Ansible's own loader does."""
    return load_file(ROOT / f"plugins/filter/{name}.py", f"filter_{name}")


@pytest.fixture
def run_module(capfd, monkeypatch):
    """Run a module of library/ with options; returns what it prints, parsed."""
    # Other tests import what belongs to Ansible itself, after which warnings would be shown and not returned.
    monkeypatch.setattr(ansible.module_utils._internal, "is_controller", False)
    monkeypatch.setattr(ansible.module_utils.common.warnings, "_global_warnings", {})

    def run(module: str, check_mode: bool = False, **options) -> dict:
        arguments = {**options, "_ansible_check_mode": check_mode, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main()
        result = json.loads(capfd.readouterr().out)
        assert bool(result.get("failed")) == (ended.value.code != 0)
        return result

    return run


def certificate() -> str:
    """A certificate as PEM text."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now)
    made = builder.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()
