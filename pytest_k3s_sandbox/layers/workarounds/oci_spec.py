"""Removes what runc cannot create in gVisor from a container's OCI specification.

The wrapper of :mod:`.oci_runtime` runs it inside the sandbox for every new container: ``python -IS
oci_spec.py CONFIG_JSON [RUNC_LOG]``. It imports only the standard library.
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
    """Return a specification that runc can create in gVisor (OCI Runtime Specification, "config-linux.md").

    OOM score, masked paths, cgroup settings and the rest stay: gVisor and the cgroup file system accept them.

    Args:
        spec: The content of a bundle's ``config.json``, which is not changed.

    Returns:
        The content without what gVisor refuses; a second adaptation changes nothing.
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
    """Adapt a ``config.json`` in place, atomically.

    Args:
        path: The file.

    Returns:
        Whether the content changed.

    Raises:
        OSError: The file cannot be read or replaced.
        ValueError: The content is not a JSON object.
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
    """Adapt the named file; write errors to the log that containerd's shim reads runc's errors from."""
    path, *logs = argv
    try:
        adapt_file(path)
    except FileNotFoundError:
        return 0  # runc reports a missing file itself
    except (OSError, ValueError) as error:
        message = f"k3s-sandbox: {path} could not be adapted to gVisor: {error}"
        sys.stderr.write(f"{message}\n")
        for log in filter(None, logs):
            # The format of `runc --log-format json`; the shim reads the last line with level error.
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"level": "error", "msg": message}) + "\n")
        return 1
    return 0


def _is_cgroup(namespace: object) -> bool:
    return isinstance(namespace, dict) and namespace.get("type") == "cgroup"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
