"""Encryption of what is kept in the bucket, and what tells one key from another without telling the key.

An encrypted object is MAGIC, a salt of 32 bytes, and chunks of CHUNK bytes (the last one may be shorter), each with its
tag. The salt and the object's name make a key of its own for AES-256-GCM; a chunk's nonce is its number and whether it
is the last one. So a chunk that is missing, moved, of another object or after the end is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator

from bucket import BackupError, Exit

MAGIC = b"mlflow-backup-1\n"
SALT = 32
CHUNK = 1 << 20
TAG = 16
# What guessing a passphrase costs: 64 MiB and a good part of a second for each.
SCRYPT = {"n": 1 << 16, "r": 8, "p": 1, "maxmem": 1 << 27}


class Cipher:
    """Encrypts and decrypts with one key of 32 bytes."""

    def __init__(self, key: bytes):
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise BackupError(
                Exit.USAGE, "this image of MLflow has no package cryptography, which backup_encryption_key needs"
            ) from None
        self._key, self._aead = key, AESGCM
        self.fingerprint = hmac.new(key, b"fingerprint", hashlib.sha256).hexdigest()[:16]

    def _of(self, name: str, salt: bytes):
        return self._aead(hmac.new(self._key, b"object" + salt + name.encode(), hashlib.sha256).digest())

    def encrypted(self, blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """What is kept as the object of this name."""
        salt = secrets.token_bytes(SALT)
        aead = self._of(name, salt)
        yield MAGIC + salt
        for number, (chunk, last) in enumerate(chunks_of(blocks, CHUNK)):
            yield aead.encrypt(nonce(number, last), chunk, None)

    def decrypted(self, blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """What was encrypted as the object of this name.

        :raises BackupError: it is not that, or not all of it.
        """
        from cryptography.exceptions import InvalidTag

        blocks = iter(blocks)
        head = bytearray()
        while len(head) < len(MAGIC) + SALT:
            block = next(blocks, None)
            if block is None:
                break
            head += block
        if not head.startswith(MAGIC):
            raise BackupError(Exit.REFUSED, f"{name} is not encrypted as it should be; it was changed")
        aead = self._of(name, bytes(head[len(MAGIC) : len(MAGIC) + SALT]))
        rest = bytes(head[len(MAGIC) + SALT :])
        for number, (chunk, last) in enumerate(chunks_of(joined(rest, blocks), CHUNK + TAG)):
            try:
                yield aead.decrypt(nonce(number, last), chunk, None)
            except InvalidTag:
                raise BackupError(
                    Exit.REFUSED,
                    f"{name} cannot be decrypted from byte {number * CHUNK} on; it was changed or damaged: restore "
                    f"another backup",
                ) from None


def joined(first: bytes, others: Iterable[bytes]) -> Iterator[bytes]:
    """One block, and those after it."""
    yield first
    yield from others


def chunks_of(blocks: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Blocks of any sizes as chunks of one size, each with whether it is the last one; that may be empty."""
    waiting = bytearray()
    for block in blocks:
        waiting += block
        while len(waiting) > size:
            yield bytes(waiting[:size]), False
            del waiting[:size]
    yield bytes(waiting), True


def encrypted_size(size: int) -> int:
    """How large what has this size is when it is encrypted."""
    return len(MAGIC) + SALT + size + TAG * max(1, -(-size // CHUNK))


def nonce(number: int, last: bool) -> bytes:
    """The nonce of a chunk."""
    return number.to_bytes(11, "big") + bytes([last])


def cipher_from_environment() -> Cipher | None:
    """The cipher of MLFLOW_BACKUP_ENCRYPTION_KEY, or None where there is no key."""
    text = os.environ.get("MLFLOW_BACKUP_ENCRYPTION_KEY", "")
    if not text:
        return None
    try:
        key = base64.urlsafe_b64decode(text.translate(str.maketrans("+/", "-_")))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise BackupError(Exit.USAGE, "backup_encryption_key: expected 32 bytes in base64 (openssl rand -base64 32)")
    return Cipher(key)


def cipher_for(manifest: dict) -> Cipher | None:
    """The cipher that a backup was made with.

    :raises BackupError: there is no key, or it is another one.
    """
    wanted = (manifest.get("encryption") or {}).get("key")
    if not wanted:
        return None
    cipher = cipher_from_environment()
    told = "there is none" if cipher is None else f"that of backup_encryption_key is {cipher.fingerprint}"
    if cipher is None or cipher.fingerprint != wanted:
        raise BackupError(
            Exit.REFUSED,
            f"backup {manifest['id']} is encrypted with the key of fingerprint {wanted}, and {told}; expected that key "
            f"in mlflow_environment_secrets.backup_encryption_key",
        )
    return cipher


def passphrase_fingerprint(passphrase: str, salt: bytes | None = None) -> dict:
    """What tells a passphrase from another one, and is as hard to turn back as scrypt makes it."""
    salt = salt or secrets.token_bytes(16)
    digest = hashlib.scrypt(passphrase.encode(), salt=salt, dklen=32, **SCRYPT)
    return {"salt": salt.hex(), "scrypt": digest.hex()}


def is_passphrase(passphrase: str, kept: dict) -> bool:
    """Whether a fingerprint is of this passphrase."""
    found = passphrase_fingerprint(passphrase, bytes.fromhex(kept["salt"]))
    return hmac.compare_digest(found["scrypt"], kept["scrypt"])
