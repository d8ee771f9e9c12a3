"""Naming layers, and bringing a stack of them up and down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError, LayerError
from pytest_k3s_sandbox.layers import stack
from pytest_k3s_sandbox.layers.base import Effect, Health, Layer
from pytest_k3s_sandbox.sandbox.base import Sandbox

SANDBOX = cast("Sandbox", object())  # the layers below do not look at it


@given(st.lists(st.sampled_from([*stack.LAYERS, "none", ""])))
def test_names_come_in_the_order_of_the_stack_once_each(words: list[str]) -> None:
    parsed = stack.parse(words)
    assert parsed == stack.parse(",".join(words)) == stack.parse(" , ".join(words))
    assert set(parsed) == set(words) - {"none", ""}
    assert list(parsed) == sorted(parsed, key=stack.FULL.index)
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
    assert all(name in str(caught.value) for name in stack.LAYERS)


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


class Noted:
    """A layer that notes what happens to it."""

    def __init__(self, name: str, notes: list[str], *, broken: bool = False) -> None:
        """Keep the arguments."""
        self.name = name
        self.effect = Effect()
        self._notes = notes
        self._broken = broken

    def __enter__(self) -> Self:
        """Come up, unless broken."""
        if self._broken:
            raise LayerError(f"the layer {self.name} did not come up")
        self._notes.append(f"+{self.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go down."""
        self._notes.append(f"-{self.name}")

    def check(self) -> Health:
        """Say that all is well."""
        return Health(ok=True, details={"name": self.name})


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    def maker(name: str) -> Layer:
        return Noted(name, said, broken=name == "broken")

    layers = {name: lambda _sandbox, name=name: maker(name) for name in ("a", "b", "broken", "c")}
    monkeypatch.setattr(stack, "LAYERS", layers)
    return said


def test_a_stack_comes_up_in_its_order_and_goes_down_in_reverse(notes: list[str]) -> None:
    with stack.bring_up(SANDBOX, ["a", "b", "c"]) as up:
        assert up.names == ("a", "b", "c")
        assert {name: health.details["name"] for name, health in up.check().items()} == {
            "a": "a",
            "b": "b",
            "c": "c",
        }
        assert notes == ["+a", "+b", "+c"]
    assert notes[3:] == ["-c", "-b", "-a"]


def test_a_broken_layer_takes_the_ones_before_it_down(notes: list[str]) -> None:
    with pytest.raises(LayerError, match="broken"), stack.bring_up(SANDBOX, ["a", "b", "broken", "c"]):
        pytest.fail("the body must not run")
    assert notes == ["+a", "+b", "-b", "-a"]


def test_every_layer_comes_up_in_a_phase_of_its_own(notes: list[str]) -> None:
    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        notes.append(f"<{name}")
        yield
        notes.append(">")

    with stack.bring_up(SANDBOX, ["a", "c"], phase):
        pass
    assert notes == ["<layer a", "+a", ">", "<layer c", "+c", ">", "-c", "-a"]
