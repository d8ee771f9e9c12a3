"""The layers by name, and an ordered stack of them in one sandbox.

A layer is named by a word: its name, or ``NAME:VARIANT`` for one that comes up in another way than
usual, as in ``ptrace_interceptor:exp04`` (other rules) or ``workarounds:kmsg+oci`` (only these).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from pytest_k3s_sandbox.errors import ConfigError, suggestion
from pytest_k3s_sandbox.layers.base import Health, Layer
from pytest_k3s_sandbox.sandbox.base import Sandbox
from pytest_k3s_sandbox.support import forks


def _workarounds(sandbox: Sandbox, variant: str | None = None) -> Layer:
    from pytest_k3s_sandbox.layers.workarounds.layer import Workarounds

    return Workarounds(sandbox) if variant is None else Workarounds.only(sandbox, variant)


def _fuse_cgroupfs(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs

    return FuseCgroupfs(sandbox)


def _ptrace_interceptor(sandbox: Sandbox, variant: str | None = None) -> Layer:
    from pytest_k3s_sandbox.layers.interceptor.layer import PRESET, PtraceInterceptor
    from pytest_k3s_sandbox.layers.workarounds.layer import TREE

    return PtraceInterceptor(sandbox, variant or PRESET, tree=TREE)


def _fake_cni(sandbox: Sandbox) -> Layer:
    from pytest_k3s_sandbox.layers.cni.layer import FakeCni

    return FakeCni(sandbox)


def _check_workarounds(variant: str) -> None:
    from pytest_k3s_sandbox.layers.workarounds.layer import parse_parts

    parse_parts(variant)


def _check_preset(variant: str) -> None:
    from pytest_k3s_sandbox.layers.interceptor.loading import load_preset

    load_preset(variant)


LAYERS: dict[str, Callable[..., Layer]] = {
    "workarounds": _workarounds,
    "fuse_cgroupfs": _fuse_cgroupfs,
    "ptrace_interceptor": _ptrace_interceptor,
    "fake_cni": _fake_cni,
}
"""Every layer by its name, in the order in which a full stack puts them up; called with the
sandbox and, if one was named, the variant."""

NEEDS: dict[str, tuple[str, ...]] = {
    "fuse_cgroupfs": ("workarounds",),  # which changes how mounts propagate
    "ptrace_interceptor": ("workarounds",),  # which makes the tree that paths are led to
}
"""What has to be up before a layer, if it is in the stack."""

VARIANTS: dict[str, Callable[[str], None]] = {
    "workarounds": _check_workarounds,
    "ptrace_interceptor": _check_preset,
}
"""The layers that have variants, with what raises ConfigError for one that there is not."""

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


def split(word: str) -> tuple[str, str | None]:
    """Return the name of a layer and the variant of a word like ``ptrace_interceptor:exp04``."""
    name, colon, variant = word.partition(":")
    return name, variant if colon else None


def make(word: str, sandbox: Sandbox) -> Layer:
    """Return the layer that a word names, bound to a sandbox; it is not up yet."""
    name, variant = split(word)
    return LAYERS[name](sandbox) if variant is None else LAYERS[name](sandbox, variant)


def parse(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the words of a comma-separated list of layers, in the order of a stack.

    Args:
        text: Words with commas, or a sequence of words; ``none`` and the empty text mean no layer.

    Raises:
        ConfigError: A name or a variant is unknown, or a layer is named in two ways.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    found: dict[str, str] = {}
    for word in sorted({word.strip() for word in words} - {"", "none"}):
        name, variant = split(word)
        if name not in LAYERS:
            raise ConfigError(
                f"unknown layer {name!r}",
                cause="known are " + ", ".join(LAYERS),
                remedy=suggestion(name, LAYERS),
            )
        if variant is not None:
            if name not in VARIANTS:
                raise ConfigError(f"layer {word!r}", cause=f"{name} has no variants", remedy=f"use {name!r}")
            VARIANTS[name](variant)
        if name in found:
            raise ConfigError(f"layers {found[name]!r} and {word!r}", cause="a stack has each layer once")
        found[name] = word
    return tuple(found[name] for name in LAYERS if name in found)


@contextlib.contextmanager
def entered(layer: Layer, sandbox: Sandbox) -> Iterator[Layer]:
    """Enter a layer, and leave it at the end, unless its sandbox goes on without this process by then.

    A process that was forked from the one that entered it does not leave it.
    """
    owner = forks.Owner()
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(layer)
        if not owner.mine or sandbox.handed_over:
            stack.pop_all()


@contextlib.contextmanager
def bring_up(
    sandbox: Sandbox,
    names: Sequence[str],
    around: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _name: contextlib.nullcontext(),
) -> Iterator[LayerStack]:
    """Bring layers up, side by side where they do not need each other, and take them down in reverse.

    Args:
        sandbox: Where.
        names: The layers' words, as :func:`parse` gives them.
        around: Called with ``layer NAME`` for each; the context lasts while it comes up.

    Raises:
        LayerError: One did not come up; the others are down again.
    """
    with contextlib.ExitStack() as stack:
        up: dict[str, Layer] = {}
        for wave in waves(names):
            up |= _side_by_side(sandbox, wave, around, stack)
        yield LayerStack(sandbox, tuple(up[word] for word in names))


def waves(words: Sequence[str]) -> list[list[str]]:
    """Return layers in groups that come up one after another; those of a group do not need each other.

    Args:
        words: The layers' words, in the order of a stack.
    """
    number: dict[str, int] = {}  # of each layer's group
    for name in (split(word)[0] for word in words):
        number[name] = max((number[need] + 1 for need in NEEDS.get(name, ()) if need in number), default=0)
    return [
        [word for word in words if number[split(word)[0]] == each] for each in sorted(set(number.values()))
    ]


def _side_by_side(
    sandbox: Sandbox,
    words: Sequence[str],
    around: Callable[[str], contextlib.AbstractContextManager[None]],
    stack: contextlib.ExitStack,
) -> dict[str, Layer]:
    """Enter layers in threads; all that came up are left with ``stack``, whatever happens to the others."""

    def enter(word: str) -> tuple[contextlib.AbstractContextManager[Layer], Layer]:
        with around(f"layer {word}"):
            context = entered(make(word, sandbox), sandbox)
            return context, context.__enter__()

    with ThreadPoolExecutor(len(words), "layer") as pool:
        tasks = {word: pool.submit(enter, word) for word in words}
        try:
            wait(tasks.values())
        finally:  # also when a signal's handler raises here
            pool.shutdown()
            for task in tasks.values():
                if task.exception() is None:
                    stack.push(task.result()[0])
    return {word: task.result()[1] for word, task in tasks.items()}
