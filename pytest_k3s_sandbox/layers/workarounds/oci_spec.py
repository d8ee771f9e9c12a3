"""What has to go from a container's OCI specification before runc can create it in gVisor.

It is also a program, run by the wrapper of :mod:`.oci_runtime` inside the sandbox at every creation of a
container: ``python -IS oci_spec.py CONFIG_JSON [RUNC_LOG]``. It uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def adapt(spec: dict[str, Any]) -> dict[str, Any]:
    """Return what runc can carry out in gVisor (OCI Runtime Specification, "config-linux.md").

    Everything else is kept as it is, the OOM score, masked paths and cgroup settings among it: gVisor
    and the cgroup filesystem accept them.

    Args:
        spec: The content of a bundle's ``config.json``; it is not changed.

    Returns:
        The same content without what gVisor refuses; adapting it again changes nothing.
    """
    linux = spec.get("linux")
    if not isinstance(linux, dict):
        return spec
    # A runc that is built without libseccomp, as ours is, refuses every profile; and the machine's kernel is
    # behind gVisor's own filter anyway.
    adapted = {name: value for name, value in linux.items() if name != "seccomp"}
    namespaces = linux.get("namespaces")
    if isinstance(namespaces, list):
        # unshare(CLONE_NEWCGROUP) is EINVAL in gVisor. The container sees its cgroup's full path instead.
        adapted["namespaces"] = [one for one in namespaces if not _is_cgroup(one)]
    return {**spec, "linux": adapted}


def adapt_file(path: str) -> bool:
    """Adapt a ``config.json`` in place; it is replaced as a whole, or not at all.

    Args:
        path: The file.

    Returns:
        Whether there was anything to change.

    Raises:
        OSError: It cannot be read or replaced.
        ValueError: It is not a JSON object.
    """
    with open(path, "rb") as file:
        spec = json.loads(file.read())
        mode = os.fstat(file.fileno()).st_mode & 0o7777
    if not isinstance(spec, dict):
        raise ValueError(f"{path} is not a JSON object")  # noqa: TRY004 - the same error as for a file that is not JSON
    adapted = adapt(spec)
    if adapted == spec:
        return False
    partial = f"{path}.k3s-sandbox"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(json.dumps(adapted, separators=(",", ":")).encode())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return True


def main(argv: Sequence[str]) -> int:
    """Adapt the file that is named; on failure say so where containerd's shim looks for runc's errors."""
    path, *logs = argv
    try:
        adapt_file(path)
    except FileNotFoundError:
        return 0  # runc says it better
    except (OSError, ValueError) as error:
        message = f"k3s-sandbox: {path} could not be adapted to gVisor: {error}"
        sys.stderr.write(f"{message}\n")
        for log in filter(None, logs):
            # The form of `runc --log-format json`; the shim reads the last line with level error.
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"level": "error", "msg": message}) + "\n")
        return 1
    return 0


def _is_cgroup(namespace: object) -> bool:
    return isinstance(namespace, dict) and namespace.get("type") == "cgroup"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
