"""The fake CNI plugin: allocates addresses, and configures no interface.

containerd starts it for every pod, inside the sandbox. It imports little of the standard library:
``argparse``, ``dataclasses`` and ``pathlib`` nearly double its start. Its interface is the CNI specification
1.1.0, section 2.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from ipaddress import IPv4Address

from . import allocation, protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

LAST = "last"
"""The file with the last address that was given out."""

LOCK = "lock"
"""The file that plugins lock."""


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
        return _add(request, store)
    if request.command == "CHECK":
        if request.key not in book.held:
            details = f"{request.key[1]} of {request.key[0]} is not in {request.network}"
            raise protocol.CniError(protocol.UNKNOWN_CONTAINER, "unknown attachment", details)
        protocol.check_result(request, book.held[request.key])
        return None
    changed = book.keep(request.valid) if request.command == "GC" else book.release(request.key)
    if changed != book:
        store.write(book, changed)
    return None


def _add(request: protocol.Request, store: Store) -> dict[str, Any]:
    first, last, reserved = allocation.bounds(request.subnet, request.gateway)
    while True:
        book = store.read()
        try:
            changed, address = book.allocate(request.key, first, last, reserved)
            store.write(book, changed)
        except FileExistsError:  # the script, which takes no lock, was faster
            continue
        except allocation.AlreadyAttached as error:
            details = f"{request.key[1]} of {request.key[0]} is in {request.network}: DEL must come first"
            raise protocol.CniError(protocol.ALREADY_ATTACHED, "already attached", details) from error
        except allocation.Exhausted as error:
            details = f"all of {request.subnet} is held in {request.network}"
            raise protocol.CniError(protocol.EXHAUSTED, "no address is free", details) from error
        return protocol.result(request, address)


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

    A file for each address holds its attachment, and a file for each attachment (``CONTAINER:INTERFACE``) its
    address. Both are made exclusively, the attachment's first: the script of :mod:`.script` takes no lock.

    Args:
        folder: The folder of all networks' records; created if missing.
        network: The network's name.
    """

    def __init__(self, folder: str, network: str) -> None:
        """Name the folder."""
        self._folder = os.path.join(folder, network)
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OSError: The folder or the lock file cannot be made.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        self._lock = os.open(f"{self._folder}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        os.close(self._lock)

    def read(self) -> allocation.Book:
        """Return the allocations; none without a record.

        An address whose plugin was killed before it wrote the attachment is held by nothing that GC keeps.

        Raises:
            OSError: The record cannot be read.
            ValueError: The record is broken.
        """
        held: dict[allocation.Key, int] = {}
        last = 0
        for name in os.listdir(self._folder):
            if name == LOCK:
                continue
            if name == LAST:
                last = int(IPv4Address(self._text(name) or "0.0.0.0"))  # noqa: S104 - no address to bind to
            elif ":" in name:
                key = tuple(name.split(":", 1))
                if not self._text(name):
                    held.setdefault((key[0], key[1]), 0)  # it has no address yet
            else:
                container, _, interface = (self._text(name) or f" {name}").partition(" ")
                held[container, interface] = int(IPv4Address(name))
        return allocation.Book(held, last)

    def write(self, before: allocation.Book, after: allocation.Book) -> None:
        """Change the record.

        Raises:
            FileExistsError: Another plugin was faster with an address or an attachment.
            OSError: The record cannot be written.
        """
        for key in before.held.keys() - after.held.keys():
            for name in (str(IPv4Address(before.held[key])), ":".join(key)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self._folder}/{name}")
        for key in after.held.keys() - before.held.keys():
            address = str(IPv4Address(after.held[key]))
            self._put(":".join(key), address, "x")
            try:
                self._put(address, " ".join(key), "x")
            except OSError:
                os.unlink(f"{self._folder}/{':'.join(key)}")
                raise
        if after.last != before.last:
            self._put(LAST, str(IPv4Address(after.last)), "w")

    def _text(self, name: str) -> str:
        try:
            with open(f"{self._folder}/{name}", encoding="ascii") as file:
                return file.read().rstrip("\n")
        except FileNotFoundError:  # released meanwhile
            return ""

    def _put(self, name: str, text: str, mode: str) -> None:
        with open(f"{self._folder}/{name}", mode, encoding="ascii") as file:
            file.write(f"{text}\n")


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
