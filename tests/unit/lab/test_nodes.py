"""What is recorded about a trial, with trials that are played."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.lab.nodes import ISOLATION, VAR_MOUNT, NodeTrials
from pytest_k3s_sandbox.lab.observe import Observation
from pytest_k3s_sandbox.lab.trials import Trials
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import RunWriter, Stage, read_run


class Played(NodeTrials):
    """Trials in which every node starts, and gets no further."""

    asked: list[dict[str, Any]]

    def _begin(self, stack: contextlib.ExitStack) -> tuple[Trials, RunWriter]:
        writer = stack.enter_context(self._record("trials"))

        def run(words: tuple[str, ...], **more: object) -> Observation:
            self.asked.append({"words": words, **more})
            return Observation(Stage.STARTED, exit_code=1)

        cluster = SimpleNamespace(settings=SimpleNamespace(kubernetes="1.34.4"))
        return cast("Trials", SimpleNamespace(run=run, cluster=cluster)), writer


def played(folder: Path, *, one_root: bool = True) -> Played:
    numbers = iter(range(9))

    @contextlib.contextmanager
    def record(*_words: str) -> Iterator[RunWriter]:
        with RunWriter(folder / str(next(numbers))) as writer:
            yield writer

    toolchain: Any = None
    made = Played(NodeSpec(one_root=one_root), toolchain, record, lambda: "exp01")
    made.asked = []
    return made


@pytest.mark.parametrize("one_root", [True, False])
def test_a_trial_is_recorded_with_all_that_it_had(tmp_path: Path, one_root: bool) -> None:
    trials = played(tmp_path, one_root=one_root)
    layer: Any = SimpleNamespace(name="tmpfs")
    trials.run(("fake_cni",), isolation=False, also=[layer])
    trials.close()
    (cell,) = read_run(tmp_path / "0").ablation
    assert trials.asked == [{"words": ("fake_cni",), "isolation": False, "also": [layer]}]
    assert (cell.layers, cell.settings) == (("fake_cni", "tmpfs"), {ISOLATION: "false"})
    assert (cell.version, cell.exit_code) == ("1.34.4", 1)
    assert cell.variant == (None if one_root else VAR_MOUNT)


def test_trials_start_when_they_are_asked_for_and_again_after_their_end(tmp_path: Path) -> None:
    trials = played(tmp_path)
    assert not list(tmp_path.iterdir())
    trials.run(())
    trials.run(())
    trials.close()
    trials.close()
    trials.run(())
    trials.close()
    assert [len(read_run(folder).ablation) for folder in sorted(tmp_path.iterdir())] == [2, 1]
    assert read_run(tmp_path / "1").complete
