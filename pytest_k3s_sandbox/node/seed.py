"""The initial datastore of clusters, made once for each version of the programs that write it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pytest_k3s_sandbox.cluster import datastore, dns
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.runner import ClusterRunner
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import MissingCapability, StartError
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.cache import CorruptEntryError
from pytest_k3s_sandbox.toolchain.progress import Work

WRITERS = ("kine", "kube-apiserver", "kube-controller-manager")
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
SECONDS = 90.0


def seed(toolchain: Toolchain) -> Path | None:
    """Return the initial datastore for clusters of these programs.

    The first call makes it: it starts the control plane in a ``host`` sandbox, which takes some seconds.

    Args:
        toolchain: The source of the programs; its cache stores the datastore.

    Returns:
        A SQLite file to copy; None for an empty datastore. It is None with ``K3S_SANDBOX_SEED=0``. It is also
        None if this machine cannot start a ``host`` sandbox; then the progress output has a note.

    Raises:
        SandboxError: The control plane did not come up; nothing is left.
    """
    if toolchain.environ.get("K3S_SANDBOX_SEED") == "0":
        return None
    key = datastore.identity((toolchain.get(name).path for name in WRITERS), dns.objects())
    found = _cached(toolchain, key)
    if found is not None:
        return found
    with toolchain.cache.lock(key):
        found = _cached(toolchain, key)
        if found is not None:  # another process made it meanwhile
            return found
        what = f"a datastore for Kubernetes {toolchain.pins.kubernetes}"
        try:
            with Work(toolchain.progress, f"preparing {what}"):
                entry = toolchain.cache.create(
                    key,
                    lambda content, _scratch: _write(toolchain, content / datastore.FILE),
                    version=toolchain.pins.kubernetes,
                    origin="build",
                    what=what,
                )
        except _NoPlaceError as error:
            note = f"clusters begin with an empty datastore, which takes some seconds more: {error.__cause__}"
            toolchain.progress.note(" ".join(note.split()))
            return None
    return entry.folder / datastore.FILE


class _NoPlaceError(Exception):
    """A ``host`` sandbox does not start; ``__cause__`` has the error."""


def _cached(toolchain: Toolchain, key: str) -> Path | None:
    with contextlib.suppress(CorruptEntryError):
        entry = toolchain.cache.lookup(key, datastore.FILE)
        return entry.folder / datastore.FILE if entry is not None else None
    return None


def _write(toolchain: Toolchain, target: Path) -> None:
    """Start a control plane on an empty datastore, stop it, and copy the datastore to a file."""
    distribution = Embedded()
    deadline = Deadline.after(SECONDS)
    try:
        started = start_sandbox(NodeSpec("host"), toolchain)
    except (StartError, MissingCapability) as error:
        raise _NoPlaceError from error
    with started as sandbox:
        settings = ClusterSettings(
            node="k3s-sandbox", address=sandbox.address, kubernetes=toolchain.pins.kubernetes
        )
        kubectl = toolchain.get("kubectl").path
        with ClusterRunner(sandbox, distribution, settings, kubectl=kubectl) as runner:
            distribution.wait_control_plane(sandbox, settings, deadline)
            for namespace in NAMESPACES:
                runner.cluster.wait_usable(namespace, deadline)
            runner.cluster.kubectl("create", "-f", "-", stdin=dns.manifest())
        # Programs inside could swap files while SQLite opens them by name: use copies outside.
        for suffix in ("", "-wal"):
            name = f"{STATE_DIR}/db/{datastore.FILE}{suffix}"
            if sandbox.files.exists(name):
                sandbox.files.copy_out(name, target.with_name(f"{target.name}{suffix}"))
        datastore.clean(target)
        for path in target.parent.glob(f"{target.name}-*"):
            path.unlink()
