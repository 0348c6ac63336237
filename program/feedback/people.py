"""Who said something, as a pseudonym: a hash of the name, salted by a secret that stands beside the store.

Whoever has both files can try names; whoever has the store, or an export, alone cannot.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from corpora.labels.rows import folded
from modules.index_files import StoreError

_SALT_CHARS = 64


def pseudonym(name: str, salt: str) -> str:
    """32 hex characters for a name, the same whatever its case and white space; "" for none."""
    name = folded(name).casefold()
    return hmac.new(bytes.fromhex(salt), name.encode(), hashlib.sha256).hexdigest()[:32] if name else ""


def salt_path(store: Path) -> Path:
    """Where the salt of a store stands."""
    return store.with_name(f"{store.name}.salt")


def read_salt(store: Path, *, make: bool) -> str:
    """The salt of a store; if there is none it is made, readable by its owner alone, or StoreError unless `make`.

    StoreError where others may read it, and where it is damaged.
    """
    path = salt_path(store)
    try:
        if make and not path.exists():
            _make(path)
        with path.open(encoding="ascii") as file:
            mode, salt = os.fstat(file.fileno()).st_mode, file.read().strip()
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is gone: without it no name is recognised as that of somebody who is in the store. Put it back."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be used ({error}). See that it is whole, and that you may read it.") from error
    if os.name == "posix" and mode & 0o077:
        raise StoreError(f"{path} may be read by others (mode {mode & 0o777:o}). Run `chmod 600` on it.")
    if len(salt) != _SALT_CHARS or set(salt) - set("0123456789abcdef"):
        raise StoreError(f"{path} is damaged: it must hold {_SALT_CHARS} hex characters. Put back a copy of it.")
    return salt


def _make(path: Path) -> None:
    """A new salt, whole or not at all; of two processes that make one, the first does."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SALT_CHARS // 2))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            pass
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
