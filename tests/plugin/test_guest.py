"""A project that has the plugin installed and uses nothing of it does not notice that."""

from __future__ import annotations

import textwrap

import pytest

from support.project import FAKE_NODE

FOREIGN = """
import sys
import pytest

def pytest_configure(config):
    for line in ("nightly: ours", "requires(what): ours", "layers(n): ours", "exp01: ours"):
        config.addinivalue_line("markers", line)

@pytest.fixture
def sandbox():
    return "a sandbox of the project's own"

@pytest.fixture
def layers():
    return 7

@pytest.fixture
def k3s(request):
    return "a cluster of the project's own"

def pytest_unconfigure(config):
    print("LOADED", *sorted(name for name in sys.modules if name.startswith("pytest_k3s_sandbox.")))
"""

TESTS = """
import pytest

@pytest.mark.nightly
def test_night(sandbox): assert sandbox.startswith("a sandbox of the")

@pytest.mark.requires("docker")
@pytest.mark.layers(3)
@pytest.mark.exp01
def test_docker(layers): assert layers == 7

def test_cluster(k3s): assert k3s.startswith("a cluster of the")

def test_dynamic(request): assert request.getfixturevalue("layers") == 7
"""

PLUGIN = ("activation", "fixtures", "markers", "options", "plugin", "stash", "workers")
SETTINGS = ("options", "parsing", "resolved")
INERT = {
    *("errors", "layers", "layers.folders", "pytestplugin", "settings", "support", "support.escaping"),
    *(f"pytestplugin.{name}" for name in PLUGIN),
    *(f"settings.{name}" for name in SETTINGS),
}
"""The modules that pytest loads in every project: declarations."""


@pytest.fixture
def foreign(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project that uses names which were the plugin's."""
    pytester.makeconftest(FOREIGN)
    pytester.makepyfile(TESTS)
    return pytester


def loaded(result: pytest.RunResult) -> set[str]:
    (line,) = [line for line in result.outlines if line.startswith("LOADED")]
    return {word.removeprefix("pytest_k3s_sandbox.") for word in line.split()[1:]}


def test_who_uses_nothing_of_the_plugin_does_not_notice_it(foreign: pytest.Pytester) -> None:
    result = foreign.runpytest_subprocess("--strict-markers", "-v", "-pno:xdist")
    result.assert_outcomes(passed=4)
    assert "deselected" not in result.stdout.str()
    assert loaded(result) == INERT
    mentions = [line for line in result.outlines if "k3s" in line and not line.startswith("LOADED")]
    assert [line for line in mentions if not line.startswith("plugins: ") and "test_" not in line] == []


def test_likewise_with_workers(foreign: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = foreign.runpytest_subprocess("--strict-markers", "-n1")
    result.assert_outcomes(passed=4)
    assert loaded(result) == INERT


@pytest.mark.parametrize("name", ["K3S_VERSION", "K3S_SANDBOX", "K3S_SCOPE", "K3S_SHARE", "K3S_KEEP"])
def test_a_variable_that_means_something_else_there_disturbs_nobody(
    foreign: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "v1.29.3+k3s1")
    foreign.runpytest_subprocess("-pno:xdist").assert_outcomes(passed=4)


def test_looking_at_it_costs_little(foreign: pytest.Pytester) -> None:
    """Counted in modules, which is the same on every machine."""
    names = " ".join(f"pytest_k3s_sandbox.{name}" for name in sorted(INERT))
    foreign.makepyfile(
        look=textwrap.dedent(
            f"""
            import sys
            import pytest
            import _pytest.pytester, _pytest.junitxml  # what pytest itself may load
            before = set(sys.modules)
            import pytest_k3s_sandbox.pytestplugin.plugin
            print(*sorted(set(sys.modules) - before - set({names!r}.split()) - {{"pytest_k3s_sandbox"}}))
            """
        )
    )
    result = foreign.runpython(foreign.path / "look.py")
    assert result.outlines == [""]


def test_the_first_who_asks_while_it_runs_wakes_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(FAKE_NODE.read_text())
    pytester.makepyfile(
        """
        def test_nothing(): pass

        def test_it(request):
            assert request.getfixturevalue("k3s_node").ready

        def test_again(k3s_layers): assert len(k3s_layers.names) == 4
        """
    )
    result = pytester.runpytest_subprocess("-k", "not again", "-pno:xdist")
    result.assert_outcomes(passed=2, deselected=1)
    result.stdout.fnmatch_lines(["k3s-sandbox: a cluster is up after *", "k3s-sandbox report: *"])


def test_what_is_missing_for_it_skips_the_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from pytest_k3s_sandbox.errors import MissingCapability

        @pytest.fixture(scope="session")
        def k3s_toolchain():
            raise MissingCapability("the moon", cause="new moon")
        """
    )
    pytester.makepyfile("def test_it(request): request.getfixturevalue('k3s_node')")
    result = pytester.runpytest_subprocess("-rs", "-pno:xdist")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*the moon: new moon"])


@pytest.mark.k3s_requires("root")
def test_what_the_node_has_to_do_without_is_a_line(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_k3s_sandbox.node import runtime, seed

        runtime.provision = lambda spec, toolchain: ("containers start with runc: not on PATH",)
        seed.seed = lambda toolchain: None
        """
    )
    pytester.makepyfile("def test_it(k3s_toolchain): pass")
    result = pytester.runpytest_subprocess("-pno:xdist")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["k3s-sandbox: containers start with runc: not on PATH"])
