"""Requests, results and errors of CNI (specification 1.1.0, sections 1, 2 and 5), without I/O."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .allocation import Key

VERSIONS = ("1.0.0", "1.1.0")
"""The supported versions of the specification, which have equal results."""

DEFAULT_SUBNET = "10.42.0.0/24"
"""The pod range of k3s' first node; the cluster's range is 10.42.0.0/16."""

DEFAULT_DATA_DIR = "/var/lib/k3s-sandbox/cni/state"
"""The folder of allocations."""

# Section 5, "Error".
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
NOT_DECODED = 6
INVALID_CONFIG = 7
# Section 2, "STATUS".
UNAVAILABLE = 50
LIMITED = 51
# Ours, from 100 on.
EXHAUSTED = 100
ALREADY_ATTACHED = 101
NOT_AS_ADDED = 102
INTERNAL = 199

# Section 2, "Parameters": the variables that each operation requires, besides CNI_COMMAND.
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
# Linux refuses longer names (IFNAMSIZ is 16 with its NUL) and these characters.
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[^\s/:]{1,15}\Z")
_IPAM_FIELDS = ("type", "subnet", "gateway", "dataDir")
_MAX_PREFIX = 30


class CniError(Exception):
    """An error answer.

    Args:
        code: The error's number, see section 5.
        msg: What is wrong, short.
        details: What is wrong, at length.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        """Keep the parts."""
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class Request:
    """A checked request of a runtime.

    Args:
        command: The operation.
        environ: The variables.
        config: The configuration from standard input.

    Attributes:
        command: The operation.
        version: The version of the specification to answer in.
        network: The network's name; empty for VERSION.
        key: The container's id and the interface's name; empty for operations without them.
        netns: The container's network namespace; empty if not given.
        subnet: The range of addresses.
        gateway: The gateway's address.
        data_dir: The folder with the allocations.
        previous: The result of the previous plugin, or of ADD.
        valid: The attachments that GC keeps.
    """

    def __init__(self, command: str, environ: Mapping[str, str], config: dict[str, Any]) -> None:
        """Check the variables and the configuration.

        Raises:
            CniError: Something is missing or not valid.
        """
        self.command = command
        self.version = _version(config)
        _check_environment(command, environ)
        self.key: Key = (environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", ""))
        self.netns = environ.get("CNI_NETNS", "")
        self.network = config.get("name", "")
        if not isinstance(self.network, str) or not _NAME.match(self.network):
            raise CniError(INVALID_CONFIG, "invalid network name", f"name: {self.network!r}")
        ipam = config.get("ipam") or {}
        if not isinstance(ipam, dict):
            raise CniError(INVALID_CONFIG, "ipam is not an object", f"ipam: {ipam!r}")
        for field, value in ipam.items():
            if field not in _IPAM_FIELDS:
                raise CniError(UNSUPPORTED_FIELD, f"unsupported field ipam.{field}: {json.dumps(value)}")
        self.subnet, self.gateway = _range(ipam)
        self.data_dir = ipam.get("dataDir", DEFAULT_DATA_DIR)
        if not isinstance(self.data_dir, str) or not self.data_dir.startswith("/"):
            raise CniError(
                INVALID_CONFIG, "ipam.dataDir is not an absolute path", f"dataDir: {self.data_dir!r}"
            )
        self.previous = config.get("prevResult")
        if self.previous is not None and not isinstance(self.previous, dict):
            raise CniError(INVALID_CONFIG, "prevResult is not an object", f"prevResult: {self.previous!r}")
        if self.previous is None and command == "CHECK":
            raise CniError(INVALID_CONFIG, "prevResult is missing", "CHECK compares with the result of ADD")
        self.valid = _attachments(config) if command == "GC" else ()


def command_of(environ: Mapping[str, str]) -> str:
    """Return the requested operation.

    Raises:
        CniError: It is missing or unknown.
    """
    command = environ.get("CNI_COMMAND", "")
    if command not in _REQUIRED:
        known = ", ".join(_REQUIRED)
        raise CniError(
            INVALID_ENVIRONMENT, "invalid CNI_COMMAND", f"CNI_COMMAND={command!r} is not one of {known}"
        )
    return command


def decode(content: bytes) -> dict[str, Any]:
    """Parse the configuration from standard input.

    Raises:
        CniError: It is not a JSON object.
    """
    try:
        config = json.loads(content)
    except ValueError as error:
        raise CniError(NOT_DECODED, "the configuration is not JSON", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(
            NOT_DECODED, "the configuration is not a JSON object", f"it is {type(config).__name__}"
        )
    return config


def result(request: Request, address: int) -> dict[str, Any]:
    """Return ADD's result (section 5, "ADD Success").

    Args:
        request: What was asked for.
        address: The address, as a number.

    Returns:
        The result of the previous plugin, if any, with this attachment's interface and address.
    """
    previous = request.previous or {}
    interfaces = list(previous.get("interfaces") or [])
    ips = list(previous.get("ips") or [])
    ours = {
        "address": f"{IPv4Address(address)}/{request.subnet.prefixlen}",
        "gateway": str(request.gateway),
        "interface": len(interfaces),
    }
    return {
        **previous,
        "cniVersion": request.version,
        "interfaces": [*interfaces, {"name": request.key[1], "sandbox": request.netns}],
        "ips": [*ips, ours],
        "routes": [*(previous.get("routes") or []), {"dst": "0.0.0.0/0", "gw": str(request.gateway)}],
        "dns": previous.get("dns") or {},
    }


def check_result(request: Request, address: int) -> None:
    """Compare the result of ADD with the allocation (section 2, "CHECK").

    Args:
        request: What was asked for, with the result of ADD.
        address: The address that the attachment holds, as a number.

    Raises:
        CniError: The result does not list that address on that interface.
    """
    previous = request.previous or {}
    interfaces = previous.get("interfaces") or []
    for ip in previous.get("ips") or []:
        index = ip.get("interface")
        name = interfaces[index].get("name") if index is not None and 0 <= index < len(interfaces) else None
        if name == request.key[1] and ip.get("address", "").partition("/")[0] == str(IPv4Address(address)):
            return
    raise CniError(
        NOT_AS_ADDED,
        "the attachment is not as it was added",
        f"{request.key[1]} of {request.key[0]} holds {IPv4Address(address)}, which prevResult does not list",
    )


def version_result(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return VERSION's result (section 5, "VERSION Success")."""
    return {"cniVersion": config.get("cniVersion", VERSIONS[-1]), "supportedVersions": list(VERSIONS)}


def error_result(error: CniError, version: str) -> dict[str, Any]:
    """Return an error's structure (section 5, "Error")."""
    answer: dict[str, Any] = {"cniVersion": version, "code": error.code, "msg": error.msg}
    if error.details:
        answer["details"] = error.details
    return answer


def _version(config: Mapping[str, Any]) -> str:
    version = config.get("cniVersion")
    if version not in VERSIONS:
        details = f"cniVersion is {version!r}, the plugin speaks {', '.join(VERSIONS)}"
        raise CniError(INCOMPATIBLE_VERSION, "incompatible CNI version", details)
    return str(version)


def _check_environment(command: str, environ: Mapping[str, str]) -> None:
    wrong = [name for name in _REQUIRED[command] if not environ.get(name)]
    for name, pattern in (("CNI_CONTAINERID", _NAME), ("CNI_IFNAME", _INTERFACE)):
        value = environ.get(name, "")
        if name in _REQUIRED[command] and value and not pattern.match(value):
            wrong.append(name)
    if wrong:
        seen = ", ".join(f"{name}={environ.get(name, '')!r}" for name in wrong)
        raise CniError(INVALID_ENVIRONMENT, f"missing or invalid: {', '.join(wrong)}", seen)


def _range(ipam: Mapping[str, Any]) -> tuple[IPv4Network, IPv4Address]:
    try:
        subnet = IPv4Network(str(ipam.get("subnet", DEFAULT_SUBNET)))
        gateway = IPv4Address(str(ipam["gateway"])) if "gateway" in ipam else subnet.network_address + 1
    except ValueError as error:
        raise CniError(INVALID_CONFIG, "invalid IPv4 address or range in ipam", str(error)) from error
    if subnet.prefixlen > _MAX_PREFIX:
        raise CniError(INVALID_CONFIG, "invalid range", f"network {subnet} is too small to allocate from")
    if gateway not in subnet:
        raise CniError(INVALID_CONFIG, "invalid gateway", f"ipam.gateway {gateway} is not in {subnet}")
    return subnet, gateway


def _attachments(config: Mapping[str, Any]) -> tuple[Key, ...]:
    name = "cni.dev/valid-attachments"
    if name not in config:
        # A missing list is not an empty one, which frees every address.
        raise CniError(INVALID_CONFIG, f"{name} is missing", "GC needs the attachments to keep")
    try:
        return tuple((str(row["containerID"]), str(row["ifname"])) for row in config[name] or ())
    except (KeyError, TypeError) as error:
        raise CniError(INVALID_CONFIG, f"invalid {name}", f"{error!r} in {config[name]!r}") from error
