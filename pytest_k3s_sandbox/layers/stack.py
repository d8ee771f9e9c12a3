"""The layers by name, and an ordered stack of them in one sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.base import Health, Layer
from pytest_k3s_sandbox.sandbox.base import Sandbox


def _workarounds(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.workarounds.layer import Workarounds  # noqa: PLC0415 - only what is used

    return Workarounds(sandbox)


def _fuse_cgroupfs(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs  # noqa: PLC0415 - only what is used

    return FuseCgroupfs(sandbox)


def _ptrace_interceptor(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.interceptor.layer import PtraceInterceptor  # noqa: PLC0415 - only what is used
    from pytest_k3s_sandbox.layers.workarounds.layer import TREE  # noqa: PLC0415 - likewise

    return PtraceInterceptor(sandbox, tree=TREE)


def _fake_cni(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.cni.layer import FakeCni  # noqa: PLC0415 - only what is used

    return FakeCni(sandbox)


LAYERS: dict[str, Callable[[Sandbox], Layer]] = {
    "workarounds": _workarounds,
    "fuse_cgroupfs": _fuse_cgroupfs,
    "ptrace_interceptor": _ptrace_interceptor,
    "fake_cni": _fake_cni,
}
"""Every layer by its name, in the order in which a full stack puts them up."""

FULL = tuple(LAYERS)
NATIVE = ("workarounds", "fake_cni")
"""What a node on plain Linux gets: a CNI, and protection of the machine's kernel tunables."""


@dataclass(frozen=True)
class LayerStack:
    """Layers that are up in one sandbox, in their order.

    Attributes:
        sandbox: Where they are.
        layers: The layers, the first one first.
    """

    sandbox: Sandbox
    layers: tuple[Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names."""
        return tuple(layer.name for layer in self.layers)

    def check(self) -> dict[str, Health]:
        """Probe every layer now."""
        return {layer.name: layer.check() for layer in self.layers}


def parse(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the layers' names of a comma-separated list, in the order of a stack.

    Args:
        text: Names with commas, or a sequence of names; ``none`` and the empty text mean no layer.

    Raises:
        ConfigError: A name is unknown.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    names = {word.strip() for word in words} - {"", "none"}
    for name in sorted(names - set(LAYERS)):
        near = get_close_matches(name, LAYERS, n=1)
        raise ConfigError(
            f"unknown layer {name!r}",
            cause="known are " + ", ".join(LAYERS),
            remedy=f"did you mean {near[0]!r}?" if near else "use one of these",
        )
    return tuple(name for name in LAYERS if name in names)


@contextlib.contextmanager
def bring_up(
    sandbox: Sandbox,
    names: Sequence[str],
    around: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _name: contextlib.nullcontext(),
) -> Iterator[LayerStack]:
    """Bring layers up in their order, and take them down in the reverse one.

    Args:
        sandbox: Where.
        names: The layers' names, as :func:`parse` gives them.
        around: Called with ``layer NAME`` for each; the context lasts while it comes up.

    Raises:
        LayerError: One did not come up; the others are down again.
    """
    with contextlib.ExitStack() as stack:
        layers = []
        for name in names:
            with around(f"layer {name}"):
                layers.append(stack.enter_context(LAYERS[name](sandbox)))
        yield LayerStack(sandbox, tuple(layers))
