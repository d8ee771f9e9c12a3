"""A node made of nothing: its text becomes the conftest.py of a pytester project.

Sandboxes, layers and clusters only write to ``journal.txt`` when they come up and go down, so
that a test can count them. The fixtures, the records and the page are the real ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from pytest_k3s_sandbox.cluster.namespace import Namespace, new_name
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.layers import registry, stack
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.node import session, spec
from pytest_k3s_sandbox.pytestplugin import experiment_markers
from pytest_k3s_sandbox.pytestplugin.activation import activate
from pytest_k3s_sandbox.report.records import Environment, Machine, RunWriter
from pytest_k3s_sandbox.sandbox import layout
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, V9FS_MAGIC, Completed
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster

JOURNAL = Path.cwd() / "journal.txt"


def note(line: str) -> None:
    """Append a line to the journal; one write, as workers of xdist share it."""
    with JOURNAL.open("a") as file:
        file.write(f"{line}\n")


class FakeSandbox:
    """A sandbox with a folder, and nothing in it."""

    kind = "gvisor"
    address = "192.0.2.1"
    handed_over = False

    def __init__(self) -> None:
        """Start, so to speak, unless a test says that it does not."""
        if os.environ.get("FAKE_SANDBOX_BREAKS"):
            raise StartError("no sandbox")
        self._owner = forks.Owner()
        self.name = f"fake-{os.getpid()}-{secrets.token_hex(4)}"
        self.workdir = Path.cwd() / self.name
        self.files, self.control = layout.shared(self.workdir), layout.control(self.workdir)
        self.logs = layout.below_var(self.workdir, f"{STATE_DIR}/logs")
        for folder in (self.logs, self.control):
            folder.mkdir(parents=True)
        Path(self.logs / "some.log").write_text("said before it broke\n")
        note("sandbox up")

    def run(self, argv: list[str], **_options: object) -> Completed:
        """Run nothing, successfully."""
        return Completed(tuple(argv), 0, "", "")

    def root_magic(self) -> int:
        """Pretend 9p."""
        return V9FS_MAGIC

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Note the end; like a real one, it is not that of a forked process."""
        if self._owner.mine:
            note("sandbox down")


class FakeLayer:
    """A layer that does nothing."""

    overrides = NodeOverrides()

    def __init__(self, name: str) -> None:
        """Keep the name."""
        self.name = name

    def check(self) -> Health:
        """Be healthy."""
        return Health(ok=True)

    def __enter__(self) -> Self:
        """Note the beginning."""
        note(f"{self.name} up")
        return self

    def __exit__(self, *_: object) -> None:
        """Note the end."""
        note(f"{self.name} down")


class FakeLog:
    """A kubelet's last words."""

    def tail(self, _size: int) -> bytes:
        """Return them."""
        return b"E1126 12:00:00.000000 7 run.go:72] interrupted system call\n"


class FakeCluster:
    """A cluster with a node that is Ready."""

    def __init__(self) -> None:
        """Be up."""
        self.node = SimpleNamespace(ready=True, wait_ready=lambda: None)
        self.supervisor = None
        code = 1 if os.environ.get("FAKE_KUBELET_ENDS") else None
        self.processes = {"kubelet": SimpleNamespace(poll=lambda: code, log=FakeLog())}
        self.lost = None
        self.namespaces: list[str] = []

    def reader(self, _seconds: float = 10.0) -> SimpleNamespace:
        """Read events: a warning in each namespace, with a text that a pod has chosen."""
        if os.environ.get("FAKE_API_ENDS"):
            raise OSError("connection refused")
        note("events read")
        about = [{"kind": "Pod", "name": "it", "namespace": name} for name in ("default", *self.namespaces)]
        message = "no such image \x1b[2J"
        items = [{"involvedObject": each, "type": "Warning", "message": message} for each in about]
        return SimpleNamespace(read=lambda _path: {"items": items})

    @contextlib.contextmanager
    def namespace(
        self, name: str | None = None, *, spare: Callable[[], bool], folders: Sequence[Path] = ()
    ) -> Iterator[Namespace]:
        """Give a name."""
        name = new_name() if name is None else name
        owner = forks.Owner()
        self.namespaces.append(name)
        yield Namespace(name, cast("Cluster", self), folders)
        self.namespaces.remove(name)
        if owner.mine:
            note("namespace spared" if spare() else "namespace gone")


def _layer(name: str, _sandbox: object, variant: str | None = None) -> FakeLayer:
    return FakeLayer(name if variant is None else f"{name}:{variant}")


@contextlib.contextmanager
def open_node(
    layers: stack.LayerStack,
    spec: spec.NodeSpec,
    _toolchain: object,
    run: RunWriter,
    *,
    experiment: str,
    runner: object,
) -> Iterator[session.NodeSession]:
    """Record where this is, and give a cluster."""
    run.append(
        Environment(
            experiment=experiment,
            sandbox=spec.sandbox,
            pins={"supervised": str(spec.supervised)},
            root_magic=V9FS_MAGIC,
            kernel=None,
            layers=layers.names,
            python=platform.python_version(),
            project_version="0",
            started="2026-01-01T00:00:00+00:00",
            argv=("pytest",),
            machine=Machine(cores=1, memory_bytes=1),
        )
    )
    note(f"cluster up with {'+'.join(layers.names) or 'none'}")
    sampler: Any = SimpleNamespace(samples=[], seen_ready=True, failure=None)
    fake: Any = runner or FakeCluster()
    owner = forks.Owner()
    yield session.NodeSession(layers, fake, run, sampler, run.path.parent, fake)
    if owner.mine:
        note("cluster down")


def pytest_configure(config: pytest.Config) -> None:
    """Have the markers of experiments, as their own conftest does."""
    experiment_markers.register(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Act on them, likewise."""
    activate(config)
    experiment_markers.apply(config, items, Path(__file__).parent)


@pytest.fixture(scope="session")
def k3s_toolchain() -> object:
    """No programs."""
    return object()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_real() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "start_sandbox", lambda _spec, _toolchain, _layers: FakeSandbox())
        patch.setattr(session, "open_control_plane", lambda *_: contextlib.nullcontext(FakeCluster()))
        patch.setattr(session, "open_node", open_node)
        for name, layer in registry.LAYERS.items():
            made = dataclasses.replace(layer, make=partial(_layer, name))
            patch.setitem(registry.LAYERS, name, made)
        yield
