"""Naming layers, and bringing a stack of them up and down."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace, TracebackType
from typing import Self, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError, LayerError
from pytest_k3s_sandbox.layers import registry, stack
from pytest_k3s_sandbox.layers.base import Health, Layer, NodeOverrides
from pytest_k3s_sandbox.layers.declaration import Declaration
from pytest_k3s_sandbox.sandbox.base import Sandbox

SANDBOX = cast("Sandbox", SimpleNamespace(kind="gvisor", name="x", address="10.213.0.2", handed_over=False))


@given(
    st.lists(st.sampled_from([*registry.LAYERS, "none", ""])),
    st.sampled_from([name for name, layer in registry.LAYERS.items() if layer.gives]),
)
def test_names_come_in_the_order_of_the_stack_once_each(words: list[str], giver: str) -> None:
    words = [giver if word in registry.LAYERS and registry.LAYERS[word].gives else word for word in words]
    parsed = stack.parse(words)
    assert parsed == stack.parse(",".join(words)) == stack.parse(" , ".join(words))
    assert set(parsed) == set(words) - {"none", ""}
    assert list(parsed) == sorted(parsed, key=list(registry.LAYERS).index)
    assert stack.parse(parsed) == parsed


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("fuse_cgroup", "did you mean 'fuse_cgroupfs'?"),
        ("fake-cni", "did you mean 'fake_cni'?"),
        ("interceptor", "did you mean 'ptrace_interceptor'?"),
        ("zzz", "use one of these"),
    ],
)
def test_an_unknown_layer_is_named_with_a_suggestion(word: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack.parse(f"workarounds,{word}")
    assert caught.value.what == f"unknown layer {word!r}"
    assert caught.value.remedy == remedy
    assert all(name in str(caught.value) for name in registry.LAYERS)


@pytest.mark.parametrize("words", ["fake_cni,pod_network", "pod_network, fake_cni"])
def test_layers_that_exclude_each_other_are_named(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack.parse(words)
    assert caught.value.what == "layers 'fake_cni' and 'pod_network'"
    assert caught.value.cause == "each gives pods their addresses"


def test_the_usual_stack_has_the_layers_of_the_research() -> None:
    assert stack.FULL == ("workarounds", "fuse_cgroupfs", "ptrace_interceptor", "fake_cni")
    assert stack.NATIVE == ("workarounds", "fake_cni")


def test_the_programs_of_layers_are_found_by_their_words() -> None:
    assert stack.programs_of(["workarounds:kmsg", "pod_network"]) == ("k3s-sandbox-network",)
    assert stack.programs_of(stack.FULL) == ()


@given(st.permutations(["workarounds:oci+kmsg", "ptrace_interceptor:exp04", "fake_cni"]))
def test_variants_are_kept_and_sorted_by_their_layers(words: list[str]) -> None:
    assert stack.parse(words) == ("workarounds:oci+kmsg", "ptrace_interceptor:exp04", "fake_cni")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ptrace_interceptor:exp4", "preset 'exp4': unknown"),
        ("ptrace_interceptor:", "preset '': unknown"),
        ("workarounds:kmgs", "unknown workaround 'kmgs'"),
        ("workarounds:private+shared", "private and shared exclude each other"),
        ("fake_cni:x", "layer 'fake_cni:x': fake_cni has no variants"),
        ("interceptor:exp04", "unknown layer 'interceptor'"),
        (
            "workarounds,workarounds:oci",
            "layers 'workarounds' and 'workarounds:oci': a stack has each layer once",
        ),
    ],
)
def test_a_wrong_variant_is_named(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack.parse(words)
    assert message in str(caught.value)


@pytest.mark.parametrize("word", ["workarounds", "workarounds:kmsg+tree", "ptrace_interceptor:exp06"])
def test_a_layer_has_the_name_that_it_was_named_by(word: str) -> None:
    assert stack.make(word, SANDBOX).name == word


@pytest.mark.parametrize("layer", registry.LAYERS.values(), ids=lambda layer: layer.name)
def test_a_layer_is_as_its_folder_declares(layer: Declaration) -> None:
    made = layer.make(SANDBOX, None)
    assert made.name == layer.name
    assert set(made.overrides.wrap) == set(layer.wraps)
    assert set(layer.needs) <= set(registry.LAYERS)


class Noted:
    """A layer that notes what happens to it."""

    def __init__(self, name: str, notes: list[str], *, broken: bool = False) -> None:
        """Keep the arguments."""
        self.name = name
        self.overrides = NodeOverrides()
        self._notes = notes
        self._broken = broken

    def __enter__(self) -> Self:
        """Come up, unless broken."""
        self.meet()
        if self._broken:
            raise LayerError(f"the layer {self.name} did not come up")
        self._notes.append(f"+{self.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go down."""
        self._notes.append(f"-{self.name}")

    def meet(self) -> None:
        """Wait for another one, in some tests."""

    def check(self) -> Health:
        """Say that all is well."""
        return Health(ok=True, details={"name": self.name})


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to layers: b needs a, c needs all before it, d and broken need none."""
    said: list[str] = []

    def declared(name: str, *needs: str) -> Declaration:
        def make(_sandbox: Sandbox, _variant: str | None) -> Layer:
            return Noted(name, said, broken=name.startswith("broken"))

        return Declaration(name=name, make=make, needs=needs)

    layers = [
        declared("a"),
        declared("b", "a"),
        declared("broken-after-b", "b"),
        declared("c", "a", "b", "broken-after-b"),
        declared("d"),
        declared("broken"),
    ]
    monkeypatch.setattr(registry, "LAYERS", {layer.name: layer for layer in layers})
    return said


def test_a_layer_comes_up_after_what_it_needs_and_all_go_down_in_reverse(notes: list[str]) -> None:
    with stack.bring_up(SANDBOX, ["a", "b", "c"]) as up:
        assert up.names == ("a", "b", "c")
        assert {name: health.details["name"] for name, health in up.check().items()} == {
            "a": "a",
            "b": "b",
            "c": "c",
        }
        assert notes == ["+a", "+b", "+c"]
    assert notes[3:] == ["-c", "-b", "-a"]


def test_layers_that_do_not_need_each_other_come_up_side_by_side(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(Noted, "meet", lambda self: meeting.wait() if self.name in {"a", "d"} else None)
    with stack.bring_up(SANDBOX, ["a", "b", "d"]) as up:
        assert up.names == ("a", "b", "d")
        assert sorted(notes[:2]) == ["+a", "+d"]
        assert notes[2:] == ["+b"]
    assert notes[3:] == ["-b", "-d", "-a"]


@pytest.mark.usefixtures("notes")
def test_layers_are_made_in_the_thread_that_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a layer imports its modules, which under pytest two threads must not do at once."""
    threads = []
    make = stack.make

    def noted(word: str, sandbox: Sandbox) -> Layer:
        threads.append(threading.current_thread())
        return make(word, sandbox)

    monkeypatch.setattr(stack, "make", noted)
    with stack.bring_up(SANDBOX, ["a", "b", "d"]):
        assert threads == [threading.current_thread()] * 3


def test_a_broken_layer_takes_the_ones_before_it_down(notes: list[str]) -> None:
    with (
        pytest.raises(LayerError, match="broken"),
        stack.bring_up(SANDBOX, ["a", "b", "broken-after-b", "c"]),
    ):
        pytest.fail("the body must not run")
    assert notes == ["+a", "+b", "-b", "-a"]


def test_a_broken_layer_takes_those_beside_it_down(notes: list[str]) -> None:
    with pytest.raises(LayerError, match="broken"), stack.bring_up(SANDBOX, ["a", "broken", "d"]):
        pytest.fail("the body must not run")
    assert sorted(notes[:2]) == ["+a", "+d"]
    assert notes[2:] == ["-d", "-a"]


def test_an_interruption_takes_down_what_is_coming_up(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_tasks: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), stack.bring_up(SANDBOX, ["a", "d"]):
        pytest.fail("the body must not run")
    assert sorted(notes[:2]) == ["+a", "+d"]
    assert notes[2:] == ["-d", "-a"]


@given(st.sets(st.sampled_from(stack.FULL)))
def test_waves_keep_every_layer_once_and_after_what_it_needs(names: set[str]) -> None:
    words = stack.parse(",".join(names))
    waves = stack.waves(words)
    assert sorted(word for wave in waves for word in wave) == sorted(words)
    assert all(waves)
    for number, wave in enumerate(waves):
        for word in wave:
            for need in set(registry.LAYERS[word].needs) & names:
                assert any(need in earlier for earlier in waves[:number])


def test_a_full_stack_comes_up_in_two_waves() -> None:
    words = ("workarounds:oci", "fuse_cgroupfs", "ptrace_interceptor:exp06", "fake_cni")
    assert stack.waves(words) == [[words[0], words[3]], [words[1], words[2]]]


def test_every_layer_comes_up_in_a_phase_of_its_own(notes: list[str]) -> None:
    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        notes.append(f"<{name}")
        yield
        notes.append(">")

    with stack.bring_up(SANDBOX, ["a", "b"], phase):
        pass
    assert notes == ["<layer a", "+a", ">", "<layer b", "+b", ">", "-b", "-a"]
