"""An ordered stack of layers in one sandbox, parsed from their names.

A layer is named by a word: its name, or ``NAME:VARIANT`` for a variant of it, as in
``ptrace_interceptor:exp04`` (other rules) or ``workarounds:kmsg+oci`` (only these).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pytest_k3s_sandbox.errors import ConfigError, suggestion
from pytest_k3s_sandbox.layers import registry
from pytest_k3s_sandbox.layers.base import Health, Layer
from pytest_k3s_sandbox.sandbox.base import Sandbox
from pytest_k3s_sandbox.support import forks

FULL = tuple(name for name, layer in registry.LAYERS.items() if layer.usual)
"""The layers of a node on a 9p root, in the order of a stack."""

NATIVE = tuple(name for name in FULL if registry.LAYERS[name].native)
"""The layers of a node on plain Linux."""


@dataclass(frozen=True)
class LayerStack:
    """Layers that are up in one sandbox, in their order.

    Attributes:
        sandbox: Their sandbox.
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
    return registry.LAYERS[name].make(sandbox, variant)


def parse(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the words of a comma-separated list of layers, in the order of a stack.

    Args:
        text: Words with commas, or a sequence of words; ``none`` and the empty text mean no layer.

    Raises:
        ConfigError: A name or a variant is unknown, a layer is named in two ways, or two layers give what
            only one can.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    found: dict[str, str] = {}
    for word in sorted({word.strip() for word in words} - {"", "none"}):
        name, variant = split(word)
        if name not in registry.LAYERS:
            raise ConfigError(
                f"unknown layer {name!r}",
                cause="known are " + ", ".join(registry.LAYERS),
                remedy=suggestion(name, registry.LAYERS),
            )
        if variant is not None:
            check = registry.LAYERS[name].check_variant
            if check is None:
                raise ConfigError(f"layer {word!r}", cause=f"{name} has no variants", remedy=f"use {name!r}")
            check(variant)
        if name in found:
            raise ConfigError(f"layers {found[name]!r} and {word!r}", cause="a stack has each layer once")
        found[name] = word
    _check_gifts(found)
    return tuple(found[name] for name in registry.LAYERS if name in found)


def _check_gifts(names: Iterable[str]) -> None:
    """Refuse layers that exclude each other.

    Raises:
        ConfigError: Two layers give what only one can.
    """
    givers: dict[str, str] = {}
    for name in names:
        gift = registry.LAYERS[name].gives
        other = givers.setdefault(gift, name) if gift else name
        if other != name:
            raise ConfigError(
                f"layers {other!r} and {name!r}", cause=f"each gives {gift}", remedy="name one of them"
            )


def programs_of(words: Iterable[str]) -> tuple[str, ...]:
    """Return the programs that layers need in their sandbox.

    Args:
        words: The layers' words.
    """
    return tuple(program for word in words for program in registry.LAYERS[split(word)[0]].programs)


@contextlib.contextmanager
def entered(layer: Layer, sandbox: Sandbox) -> Iterator[Layer]:
    """Enter a layer, and leave it at the end, unless the sandbox was handed over.

    A forked process does not leave the layer.
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
        names: The layers' words, as from :func:`parse`.
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
    """Return layers in groups that come up in turn; the layers of a group do not need each other.

    Args:
        words: The layers' words, in the order of a stack.
    """
    number: dict[str, int] = {}  # of each layer's group
    for name in (split(word)[0] for word in words):
        number[name] = max(
            (number[need] + 1 for need in registry.LAYERS[name].needs if need in number), default=0
        )
    return [
        [word for word in words if number[split(word)[0]] == each] for each in sorted(set(number.values()))
    ]


def _made(word: str, sandbox: Sandbox) -> Future[Layer]:
    """Make a layer now, and keep an error until the layer is to come up: it belongs to that layer alone."""
    layer: Future[Layer] = Future()
    try:
        layer.set_result(make(word, sandbox))
    except BaseException as error:  # noqa: BLE001 - also an interrupt: the layers beside it go down in one place
        layer.set_exception(error)
    return layer


def _side_by_side(
    sandbox: Sandbox,
    words: Sequence[str],
    around: Callable[[str], contextlib.AbstractContextManager[None]],
    stack: contextlib.ExitStack,
) -> dict[str, Layer]:
    """Enter layers in threads; ``stack`` leaves all that came up, even if others failed.

    The layers are made before, in this thread, since that imports their modules. Under pytest an import of
    ours parses the module (assertion rewriting). Two threads that parse at once fail before Python 3.11.8:
    "AST constructor recursion depth mismatch" (gh-106905).
    """
    made = {word: _made(word, sandbox) for word in words}

    def enter(word: str) -> tuple[contextlib.AbstractContextManager[Layer], Layer]:
        with around(f"layer {word}"):
            context = entered(made[word].result(), sandbox)
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
