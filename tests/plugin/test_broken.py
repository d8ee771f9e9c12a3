"""What is missing skips with its remedy; what is broken fails once, and skips what depends on it."""

from __future__ import annotations

import pytest

from support.project import Project

CONFTEST = """
import pytest
from pytest_k3s_sandbox.toolchain import capabilities
from pytest_k3s_sandbox.toolchain import probes

@pytest.fixture(scope="session")
def k3s_toolchain():
    raise AssertionError("the machine was found able, and a node would be started")

def pytest_configure():
    patch = pytest.MonkeyPatch()
    if {user}: patch.setattr(capabilities.os, "geteuid", lambda: {user})
    if not {fuse}: patch.setattr(probes, "can_open", lambda device: "No such file or directory")
    if not {ptrace}: patch.setattr(probes, "can_trace", lambda: False)
"""

LACKS: dict[str, tuple[dict[str, object], str, str]] = {
    "root": ({"user": 1000}, "not root", "Remedy: run as root, for example with sudo"),
    "fuse": ({"fuse": False}, "No such file or directory", "Remedy: load the kernel module fuse*"),
    "ptrace": ({"ptrace": False}, "ptrace is refused", "Remedy: see kernel.yama.ptrace_scope"),
    "gvisor": ({"user": 1000}, "not root, or no runsc", "Remedy: run `k3s-sandbox provision` as root"),
}


def lacking(pytester: pytest.Pytester, name: str, *arguments: str) -> pytest.RunResult:
    machine: dict[str, object] = {"user": 0, "fuse": True, "ptrace": True}
    machine.update(LACKS[name][0])
    pytester.makeconftest(CONFTEST.format(**machine))
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.k3s_requires({name!r})\ndef test_it(): pass\n"
        f"@pytest.mark.k3s_requires({name!r})\ndef test_with_node(k3s): pass\n"
    )
    return pytester.runpytest_subprocess("-rsE", *arguments)


@pytest.mark.parametrize("name", LACKS)
def test_a_missing_capability_skips_with_reason_and_remedy(pytester: pytest.Pytester, name: str) -> None:
    result = lacking(pytester, name)
    result.assert_outcomes(skipped=2)
    _, reason, remedy = LACKS[name]
    result.stdout.fnmatch_lines([f"SKIPPED*this test requires {name}: {reason}*", f"*{remedy}"])
    assert result.ret == 0


@pytest.mark.parametrize("name", LACKS)
def test_when_required_a_missing_capability_fails(pytester: pytest.Pytester, name: str) -> None:
    result = lacking(pytester, name, "--k3s-require")
    result.assert_outcomes(errors=2)
    _, reason, remedy = LACKS[name]
    result.stdout.fnmatch_lines([f"*MissingCapability: this test requires {name}: {reason}*", f"*{remedy}"])


MISSING = """
import pytest
from pytest_k3s_sandbox.errors import MissingCapability

@pytest.fixture(scope="session")
def k3s_sandbox(k3s_run):
    raise MissingCapability("the sandbox", cause="no such thing", remedy="get one")

def test_fixture(k3s): pass
def test_asked_for(request): request.getfixturevalue("k3s_node")
@pytest.mark.k3s_layers("fake_cni")
def test_other(k3s_sandbox, k3s): pass
"""


def test_a_fixture_that_lacks_something_skips_all_its_tests_and_leaves_no_run(project: Project) -> None:
    result = project.run(MISSING)
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*the sandbox: no such thing", "*Remedy: get one"])
    assert project.folders == []


UNABLE = """
import pytest
from pytest_k3s_sandbox.node import session
from pytest_k3s_sandbox.errors import MissingCapability

def unable(spec, toolchain, layers): raise MissingCapability("the sandbox", cause="no such thing")

@pytest.fixture(scope="session", autouse=True)
def unable_machine(_nothing_is_real):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "start_sandbox", unable)
        yield

@pytest.mark.k3s_layers("fake_cni")
def test_own_stack(k3s): pass
def test_shared(k3s): pass
"""


def test_a_machine_that_is_not_able_leaves_no_run(project: Project) -> None:
    result = project.run(UNABLE)
    result.assert_outcomes(skipped=2)
    assert project.folders == []


def test_when_required_all_its_tests_fail(project: Project) -> None:
    project.run(MISSING, "--k3s-require").assert_outcomes(errors=2, failed=1)


BROKEN = """
import pytest
from pytest_k3s_sandbox.errors import LayerError

@pytest.fixture(scope="session")
def k3s_cgroupfs(k3s_sandbox):
    with open("attempts", "a") as file: file.write("x")
    raise LayerError("layer fuse_cgroupfs", cause="the mount is empty", remedy="look at its log")

def test_first(k3s_namespace): pass
def test_layer_alone(k3s_cgroupfs): pass
def test_third(k3s): pass
def test_other_layer(k3s_fake_cni): pass
def test_inside(request): request.getfixturevalue("k3s")
"""


def test_a_broken_layer_is_one_error_and_its_dependents_are_skipped_naming_it(project: Project) -> None:
    result = project.run(BROKEN)
    result.assert_outcomes(errors=1, skipped=3, passed=1)
    result.stdout.fnmatch_lines(["E *LayerError: layer fuse_cgroupfs: the mount is empty*"])
    result.stdout.fnmatch_lines(["ERROR *::test_first*"])
    assert "depends on what broke before: layer fuse_cgroupfs: the mount is empty" in result.stdout.str()
    assert "Remedy: look at its log" in result.stdout.str()
    assert (project.pytester.path / "attempts").read_text() == "x"


def test_when_required_dependents_of_what_broke_are_still_skipped(project: Project) -> None:
    project.run(BROKEN, "--k3s-require").assert_outcomes(errors=1, skipped=3, passed=1)


BROKEN_LAYER = """
from dataclasses import replace
import pytest
from pytest_k3s_sandbox.errors import LayerError
from pytest_k3s_sandbox.layers.registry import LAYERS

def broken(k3s_sandbox, variant): raise LayerError("layer fake_cni", cause="no disk")

@pytest.fixture(scope="session", autouse=True)
def broken_layer(_nothing_is_real, pytestconfig):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "fake_cni", replace(LAYERS["fake_cni"], make=broken))
        yield

{mark}
def test_it(k3s): pass
"""


@pytest.mark.parametrize("mark", ["", "@pytest.mark.k3s_layers('workarounds', 'fake_cni')"])
@pytest.mark.parametrize("keep", ["never", "failed", "always"])
def test_a_failed_bring_up_leaves_its_diagnostics_and_names_the_folder(
    project: Project, mark: str, keep: str
) -> None:
    result = project.run(BROKEN_LAYER.format(mark=mark), f"--k3s-keep={keep}")
    result.assert_outcomes(errors=1)
    assert project.count["workarounds up"] == project.count["workarounds down"] == 1
    assert project.count["sandbox down"] == 1
    if keep == "never":
        assert project.folders == []
        return
    (folder,) = project.folders
    assert (folder / "logs" / "some.log").read_text() == "said before it broke\n"
    assert (folder / "diagnostics" / "mountinfo.txt").exists()
    assert (folder / "index.html").exists()
    phases = [record.name for record in project.runs[0].records if record.type == "phase"]
    assert "layer fake_cni" in phases
    result.stdout.fnmatch_lines([f"*Details: {folder}", f"k3s-sandbox report: {folder}/index.html"])
