"""How the API server is reached: a kubeconfig file, and requests over HTTP/1.0.

``http.client`` is not used: its import alone takes as long as a third of Python's start in gVisor.
In HTTP/1.0 an answer has no chunks and ends with the connection (RFC 1945, section 7.2.2).
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple

_FIELDS: Final = re.compile(
    r"^\s*(?:-\s+)?(server|(?:certificate-authority|client-certificate|client-key)(?:-data)?):\s*(\S+)\s*$",
    re.MULTILINE,
)
_URL: Final = re.compile(r"(https?)://(\[[^]]+\]|[^:/]+)(?::(\d+))?/?")
_LINE: Final = 65536  # bytes of a line of the head, as http.client has it
_HEADERS: Final = 100


class Refused(Exception):
    """The API server has answered with a status other than 200, or not in HTTP.

    Attributes:
        status: The status, or 0.
    """

    def __init__(self, status: int, text: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.status = status


class Access(NamedTuple):
    """Where the API server is, and what it and its client trust.

    Attributes:
        host: Its name or address.
        port: Its port.
        context: What TLS needs; None for plain HTTP.
    """

    host: str
    port: int
    context: ssl.SSLContext | None


def load(path: str) -> Access:
    """Read a kubeconfig file with one cluster and one user: JSON, or simple YAML, as k3s writes it.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read, or a file that it names.
        ValueError: It names no server, or a certificate is none.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    fields = _of_json(json.loads(text)) if text.lstrip().startswith("{") else dict(_FIELDS.findall(text))
    found = _URL.fullmatch(fields.get("server", "").strip("'\""))
    if found is None:
        raise ValueError(f"{path} has no server")
    scheme, host, port = found.groups()
    number = int(port) if port else {"http": 80, "https": 443}[scheme]
    return Access(host.strip("[]"), number, _context(fields) if scheme == "https" else None)


@contextmanager
def get(access: Access, path: str, timeout: float) -> Iterator[IO[bytes]]:
    """Give the body of an answer to a GET request.

    Args:
        access: The server.
        path: The path and the query.
        timeout: Seconds without any byte after which it is given up.

    Raises:
        Refused: It has another status than 200.
        OSError: The server cannot be reached, or is not the one that is trusted.
    """
    with socket.create_connection((access.host, access.port), timeout=timeout) as plain:
        context = access.context
        peer = plain if context is None else context.wrap_socket(plain, server_hostname=access.host)
        with peer, peer.makefile("rb") as answer:
            peer.sendall(
                f"GET {path} HTTP/1.0\r\nHost: {access.host}\r\nAccept: application/json\r\n\r\n".encode()
            )
            _skip_head(answer)
            yield answer


def _skip_head(answer: IO[bytes]) -> None:
    status = answer.readline(_LINE).split(None, 2)
    if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or not status[1].isdigit():  # noqa: PLR2004
        raise Refused(0, "no answer in HTTP")
    for _ in range(_HEADERS):
        line = answer.readline(_LINE)
        if line in {b"\r\n", b"\n"}:
            break
        if line.lower().startswith(b"transfer-encoding:"):
            raise Refused(0, "an answer in chunks to HTTP/1.0")
    else:
        raise Refused(0, "too many headers")
    if status[1] != b"200":
        raise Refused(int(status[1]), f"status {int(status[1])}")


def _of_json(config: Any) -> dict[str, str]:  # noqa: ANN401  # it is parsed JSON
    try:
        return {**config["clusters"][0]["cluster"], **config["users"][0]["user"]}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("a kubeconfig without cluster or user") from error


def _context(fields: dict[str, str]) -> ssl.SSLContext:
    authority = fields.get("certificate-authority-data")
    if authority is not None:
        context = ssl.create_default_context(cadata=base64.b64decode(authority).decode("ascii"))
    else:
        context = ssl.create_default_context(cafile=fields.get("certificate-authority"))
    cert, key = (_file(fields, name) for name in ("client-certificate", "client-key"))
    if cert is not None and key is not None:
        context.load_cert_chain(cert[0], key[0])
    for _, descriptor in filter(None, (cert, key)):
        if descriptor is not None:
            os.close(descriptor)
    return context


def _file(fields: dict[str, str], name: str) -> tuple[str, int | None] | None:
    """Return the path of a file with a part of the configuration; one in memory has a descriptor, too."""
    data = fields.get(f"{name}-data")
    if data is None:
        return (fields[name], None) if name in fields else None
    # ssl takes certificates from files only; memory is not on a disk, and ends with its descriptor.
    descriptor = os.memfd_create(name)
    os.write(descriptor, base64.b64decode(data))
    return f"/proc/self/fd/{descriptor}", descriptor
