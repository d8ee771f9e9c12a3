"""Markers: all registered, none without an effect, unknown arguments refused before anything starts."""

from __future__ import annotations

import textwrap

import pytest

from support.experiment_conftest import MARKS
from support.project import Project


def test_every_marker_is_registered(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(MARKS)
    marks = [f"@pytest.mark.exp{number:02}" for number in range(1, 9)]
    marks += ["@pytest.mark.nightly", "@pytest.mark.k3s_requires()"]
    lines = "\n".join(marks)
    pytester.makepyfile(f"import pytest\n{lines}\ndef test_it(): pass\n")
    pytester.runpytest_inprocess("--strict-markers", "-m", "nightly").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], ["test_day"]),
        (["-m", "exp08"], []),
        (["-m", "nightly"], ["test_night[1]", "test_night[2]"]),
        (["-m", "exp08 and nightly"], ["test_night[1]", "test_night[2]"]),
        (["-m", "not exp08"], ["test_day"]),
        (["test_it.py"], ["test_day"]),
        (["test_it.py::test_night"], ["test_night[1]", "test_night[2]"]),
        (["test_it.py::test_night[2]"], ["test_night[2]"]),
    ],
)
def test_what_is_nightly_runs_when_it_is_asked_for(
    pytester: pytest.Pytester, arguments: list[str], ran: list[str]
) -> None:
    pytester.makeconftest(MARKS)
    pytester.makepyfile(
        test_it="""
        import pytest

        def test_day(): pass

        @pytest.mark.exp08
        @pytest.mark.nightly
        @pytest.mark.parametrize("number", [1, 2])
        def test_night(number): pass
        """
    )
    result = pytester.runpytest_inprocess("-v", *arguments)
    lines = [line for line in result.outlines if " PASSED" in line]
    assert [line.partition("::")[2].split()[0] for line in lines] == ran
    result.assert_outcomes(passed=len(ran))


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ('k3s_layers("fake_cnj")', "marker k3s_layers: unknown layer 'fake_cnj': known are workarounds, *"),
        ('k3s_layers(names="fake_cni")', "marker k3s_layers: unknown argument 'names': it takes names only"),
        ('k3s_requires("toor")', "marker k3s_requires: unknown capability 'toor': known are root, fuse, *"),
        ("k3s_requires(root=True)", "marker k3s_requires: unknown argument 'root': *"),
        ('exp08("fast")', "marker exp08: unknown argument 'fast': it takes none"),
        ("nightly(hours=2)", "marker nightly: unknown argument 'hours': *"),
    ],
)  # fmt: skip
def test_unknown_arguments_are_usage_errors(pytester: pytest.Pytester, mark: str, message: str) -> None:
    pytester.makeconftest(MARKS)
    pytester.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test_it(k3s_layers): pass\n")
    result = pytester.runpytest_inprocess("--strict-markers")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_it*: {message}"])
    assert "Traceback" not in result.stderr.str()


def test_the_suggestion_for_a_layer(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.k3s_layers('fuse_cgroup')\ndef test_it(k3s_layers): pass\n"
    )
    result = pytester.runpytest_inprocess()
    result.stderr.fnmatch_lines(["*did you mean 'fuse_cgroupfs'[?]"])


STACKS = """
import pytest

def test_shared_1(k3s_layers): assert len(k3s_layers.names) == 4

@pytest.mark.k3s_layers("fake_cni", "workarounds")
def test_pair(k3s_node, k3s_layers): assert k3s_layers.names == ("workarounds", "fake_cni")

def test_shared_2(k3s_namespace): pass

@pytest.mark.k3s_layers()
def test_none(k3s, k3s_layers): assert k3s_layers.names == ()

@pytest.mark.k3s_layers("workarounds", "fake_cni")
def test_pair_again(k3s_namespace, k3s_layers): assert k3s_layers.names == ("workarounds", "fake_cni")

def test_shared_3(k3s): pass

class TestMany:
    pytestmark = pytest.mark.k3s_layers("fake_cni")

    def test_class(self, k3s, k3s_layers): assert k3s_layers.names == ("fake_cni",)

    @pytest.mark.k3s_layers("workarounds")
    def test_closest(self, k3s_layers): assert k3s_layers.names == ("workarounds",)

    def test_no_node(self): pass
"""


def test_the_marker_gives_the_stack_and_equal_stacks_share_a_node(project: Project) -> None:
    result = project.run(STACKS)
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED *::test_pair[[]layers=workarounds+fake_cni]",
            "PASSED *::test_pair_again[[]layers=workarounds+fake_cni]",
            "PASSED *::test_none[[]layers=none]",
            "PASSED *::TestMany::test_class[[]layers=fake_cni]",
            "PASSED *::TestMany::test_closest[[]layers=workarounds]",
            "PASSED *::TestMany::test_no_node",
            "PASSED *::test_shared_2",
        ]
    )
    # One node for the tests that share, in spite of the others in between.
    assert project.count["cluster up with workarounds+fuse_cgroupfs+ptrace_interceptor+fake_cni"] == 1
    assert project.count["cluster up with workarounds+fake_cni"] == 1
    assert project.count["cluster up with none"] == 1
    assert project.count["cluster up with fake_cni"] == 1
    assert project.count["sandbox up"] == project.count["sandbox down"] == 5
    assert project.count["cluster up with workarounds"] == 0
    names = [run.name.split("-", 1)[1] for run in project.runs]
    # What recorded no node, as where only layers were asked for, has no page and is not kept.
    stacks = ["", "-fake_cni", "-none", "-workarounds+fake_cni"]
    assert sorted(names) == [f"test-gvisor{stack}" for stack in stacks]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            """
            @pytest.mark.k3s_layers("fake_cni")
            @pytest.mark.parametrize("k3s_layers", ["none", "fake_cni"], indirect=True)
            def test_it(k3s_layers): pass
            """,
            "*has the marker k3s_layers and parametrizes k3s_layers, too",
        ),
        (
            """
            @pytest.mark.parametrize(("x", "k3s_layers"), [(1, "none")], indirect=["k3s_layers"])
            @pytest.mark.k3s_layers("fake_cni")
            def test_it(x, k3s_layers): pass
            """,
            "*has the marker k3s_layers and parametrizes k3s_layers, too",
        ),
        ("@pytest.mark.k3s_layers('fake_cni')\ndef test_it(): pass", "*the test uses no node, *"),
        (
            "@pytest.mark.k3s_layers('fake_cni')\ndef test_it(k3s_sandbox): pass",
            "*the test uses no node, *",
        ),
    ],
)
def test_a_marker_that_could_have_no_effect_is_refused(
    pytester: pytest.Pytester, test: str, message: str
) -> None:
    pytester.makepyfile(f"import pytest\n{textwrap.dedent(test)}\n")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}", "Remedy: *"])


def test_requires_of_a_test_that_is_skipped_anyway_asks_for_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\nfrom pytest_k3s_sandbox.toolchain import capabilities\n"
        "from pytest_k3s_sandbox.errors import MissingCapability\n"
        "@pytest.fixture(scope='session', autouse=True)\n"
        "def lacking():\n    pass\n"
        "capabilities.missing = lambda name: MissingCapability(name)\n"
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.skip(reason="not today")
        @pytest.mark.k3s_requires("root")
        def test_it(): pass
        """
    )
    result = pytester.runpytest_subprocess("--k3s-require", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*not today"])
