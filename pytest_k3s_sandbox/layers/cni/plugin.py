"""The fake CNI plugin: allocates addresses, and configures no interface.

containerd starts it for every pod, inside the sandbox. It imports little of the standard library:
``argparse``, ``dataclasses`` and ``pathlib`` nearly double its start. Its interface is the CNI specification
1.1.0, section 2.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys

from . import allocation, protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self


def answer(environ: Mapping[str, str], content: bytes) -> tuple[int, dict[str, Any] | None]:
    """Answer one request of a runtime.

    Args:
        environ: The plugin's environment.
        content: Its standard input.

    Returns:
        The exit code, which is the error's code, and the JSON for standard output, if any.
    """
    version = protocol.VERSIONS[-1]
    try:
        command = protocol.command_of(environ)
        config = protocol.decode(content)
        version = str(config.get("cniVersion", version))
        if command == "VERSION":
            return 0, protocol.version_result(config)
        return 0, _perform(protocol.Request(command, environ, config))
    except protocol.CniError as error:
        # An exit code has one byte; these codes fit.
        return error.code, protocol.error_result(error, version)


def _perform(request: protocol.Request) -> dict[str, Any] | None:
    if request.command == "STATUS":
        _status(request)
        return None
    try:
        store = Store(request.data_dir, request.network)
        with store:
            return _act(request, store)
    except OSError as error:
        raise protocol.CniError(protocol.IO_FAILURE, "the allocations cannot be kept", str(error)) from error
    except ValueError as error:
        raise protocol.CniError(protocol.NOT_DECODED, "the allocations cannot be read", str(error)) from error


def _act(request: protocol.Request, store: Store) -> dict[str, Any] | None:
    book = store.read()
    if request.command == "ADD":
        first, last, reserved = allocation.bounds(request.subnet, request.gateway)
        try:
            changed, address = book.allocate(request.key, first, last, reserved)
        except allocation.AlreadyAttached as error:
            details = f"{request.key[1]} of {request.key[0]} is in {request.network}: DEL must come first"
            raise protocol.CniError(protocol.ALREADY_ATTACHED, "already attached", details) from error
        except allocation.Exhausted as error:
            details = f"all of {request.subnet} is held in {request.network}"
            raise protocol.CniError(protocol.EXHAUSTED, "no address is free", details) from error
        store.write(changed)
        return protocol.result(request, address)
    if request.command == "CHECK":
        if request.key not in book.held:
            details = f"{request.key[1]} of {request.key[0]} is not in {request.network}"
            raise protocol.CniError(protocol.UNKNOWN_CONTAINER, "unknown attachment", details)
        protocol.check_result(request, book.held[request.key])
        return None
    changed = book.keep(request.valid) if request.command == "GC" else book.release(request.key)
    if changed != book:
        store.write(changed)
    return None


def _status(request: protocol.Request) -> None:
    try:
        with Store(request.data_dir, request.network) as store:
            free = store.read().free(*allocation.bounds(request.subnet, request.gateway))
    except OSError as error:
        raise protocol.CniError(protocol.UNAVAILABLE, "the allocations cannot be kept", str(error)) from error
    except ValueError as error:
        # Without the record, an address may be allocated twice.
        raise protocol.CniError(protocol.LIMITED, "the allocations cannot be read", str(error)) from error
    if not free:
        details = f"all of {request.subnet} is held in {request.network}"
        raise protocol.CniError(protocol.UNAVAILABLE, "no address is free", details)


class Store:
    """One network's allocations on disk; entering waits for the lock against concurrent plugins.

    Args:
        folder: The folder of all networks' records; created if missing.
        network: The network's name.
    """

    def __init__(self, folder: str, network: str) -> None:
        """Name the files."""
        self._folder = folder
        self._path = os.path.join(folder, f"{network}.json")
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OSError: The folder or the lock file cannot be made.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        # A separate file, because the record is replaced under the lock.
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        os.close(self._lock)

    def read(self) -> allocation.Book:
        """Return the allocations; none without a record.

        Raises:
            OSError: The record cannot be read.
            ValueError: The record is broken.
        """
        try:
            with open(self._path, "rb") as file:
                return allocation.from_document(json.loads(file.read()))
        except FileNotFoundError:
            return allocation.Book()

    def write(self, book: allocation.Book) -> None:
        """Replace the record atomically.

        Raises:
            OSError: The record cannot be written; the old one stays.
        """
        partial = f"{self._path}.partial"
        with open(partial, "wb") as file:
            file.write(json.dumps(book.document()).encode())
        os.replace(partial, self._path)


def main() -> int:
    """Answer the request in the environment and on standard input."""
    try:
        code, document = answer(os.environ, sys.stdin.buffer.read())
    except Exception as error:  # noqa: BLE001 - the runtime reads JSON from standard output, whatever happens
        failure = protocol.CniError(protocol.INTERNAL, "internal error", repr(error))
        code, document = failure.code, protocol.error_result(failure, protocol.VERSIONS[-1])
    if document is not None:
        sys.stdout.write(json.dumps(document))
        sys.stdout.flush()
    return code
