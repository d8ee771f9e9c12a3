"""Fixtures can be redefined, live as long as the scope says, and give each stack a node of its own."""

from __future__ import annotations

import pytest

from support.project import Project

FULL = "workarounds+fuse_cgroupfs+ptrace_interceptor+fake_cni"


def test_a_layer_can_be_redefined(project: Project) -> None:
    result = project.run(
        """
        import pytest

        class Mine:
            name = "my_cni"

        @pytest.fixture(scope="session")
        def k3s_fake_cni(k3s_sandbox):
            return Mine()

        def test_it(k3s, k3s_layers, k3s_fake_cni):
            assert k3s_layers.layers[-1] is k3s_fake_cni
            assert k3s_layers.names == ("workarounds", "fuse_cgroupfs", "ptrace_interceptor", "my_cni")
        """
    )
    result.assert_outcomes(passed=1)
    assert project.count["fake_cni up"] == 0


def test_the_option_names_a_variant_of_a_layer(project: Project) -> None:
    result = project.run(
        """
        def test_it(k3s, k3s_layers, k3s_interceptor):
            assert k3s_layers.names == ("ptrace_interceptor:exp04", "fake_cni")
            assert k3s_layers.layers[0] is k3s_interceptor
        """,
        "--k3s-layers=fake_cni,ptrace_interceptor:exp04",
    )
    result.assert_outcomes(passed=1)
    assert project.count["ptrace_interceptor:exp04 up"] == 1


def test_the_wish_can_be_redefined(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from pytest_k3s_sandbox.node.spec import NodeSpec

        @pytest.fixture(scope="session")
        def k3s_spec():
            return NodeSpec("gvisor", ("workarounds",), api_port=7000)

        def test_it(k3s, k3s_layers):
            assert k3s_layers.names == ("workarounds",)
        """,
        "--k3s-layers=fake_cni",
    )
    result.assert_outcomes(passed=1)
    assert project.journal == [
        "sandbox up",
        "workarounds up",
        "cluster up with workarounds",
        "cluster down",
        "workarounds down",
        "sandbox down",
    ]


def test_a_spec_under_its_former_name_counts_and_is_noted(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from pytest_k3s_sandbox.node.spec import NodeSpec

        @pytest.fixture(scope="session")
        def k3s_wish():
            return NodeSpec("gvisor", ("workarounds",), api_port=7000)

        def test_it(k3s, k3s_layers, k3s_up, k3s_session):
            assert k3s_layers.names == ("workarounds",)
            assert k3s_up is k3s_session
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "k3s-sandbox: the fixture k3s_wish is now k3s_spec",
            "k3s-sandbox: the fixture k3s_up is now k3s_session",
        ]
    )


def test_a_spec_by_its_own_name_is_not_noted(project: Project) -> None:
    result = project.run("def test_it(k3s_session): pass")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*is now*")


def test_a_stack_can_be_redefined_without_records_of_its_own(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from pytest_k3s_sandbox.layers.stack import LayerStack

        @pytest.fixture(scope="session")
        def k3s_layers(k3s_sandbox, k3s_workarounds):
            return LayerStack(k3s_sandbox, (k3s_workarounds,))

        def test_it(k3s_node, k3s_readiness): assert k3s_node.ready
        """
    )
    result.assert_outcomes(passed=1)
    assert project.count["cluster up with workarounds"] == 1


def test_options_choose_the_layers(project: Project) -> None:
    project.run("def test_it(k3s): pass", "--k3s-layers=none").assert_outcomes(passed=1)
    assert "cluster up with none" in project.journal


SCOPED = """
class TestOne:
    def test_1(self, k3s): pass
    def test_2(self, k3s, k3s_sandbox): pass

class TestTwo:
    def test_3(self, k3s_node): pass
    def test_4(self, k3s_namespace): pass
"""


@pytest.mark.parametrize(("scope", "nodes"), [("session", 1), ("module", 2), ("class", 4), ("function", 8)])
def test_the_scope_says_how_long_a_node_lives(project: Project, scope: str, nodes: int) -> None:
    project.pytester.makepyfile(test_other=SCOPED)
    project.run(SCOPED, f"--k3s-scope={scope}").assert_outcomes(passed=8)
    assert project.count["sandbox up"] == project.count["sandbox down"] == nodes
    assert project.count[f"cluster up with {FULL}"] == project.count["cluster down"] == nodes
    assert len(project.runs) == nodes
    assert all(run.complete for run in project.runs)


def test_each_stack_has_a_fresh_sandbox_and_a_run_of_its_own(project: Project) -> None:
    result = project.run(
        """
        import pytest

        STACKS = ["none", "fake_cni", ["fake_cni", "workarounds"]]
        stacks = pytest.mark.parametrize("k3s_layers", STACKS, indirect=True)

        @stacks
        def test_first(k3s, k3s_layers): pass

        @stacks
        def test_second(k3s_node): pass
        """
    )
    result.assert_outcomes(passed=6)
    ups = [line for line in project.journal if line.startswith("cluster up")]
    assert ups == ["cluster up with none", "cluster up with fake_cni", "cluster up with workarounds+fake_cni"]
    assert project.journal[:8] == [
        "sandbox up",
        "cluster up with none",
        "cluster down",
        "sandbox down",
        "sandbox up",
        "fake_cni up",
        "cluster up with fake_cni",
        "cluster down",
    ]
    assert {run.environment.layers for run in project.runs if run.environment} == {
        (),
        ("fake_cni",),
        ("workarounds", "fake_cni"),
    }


def test_an_unknown_layer_in_a_parametrization_is_an_error_that_names_the_known(project: Project) -> None:
    result = project.run(
        """
        import pytest

        @pytest.mark.parametrize("k3s_layers", ["fake_cn"], indirect=True)
        def test_it(k3s): pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*unknown layer 'fake_cn': known are *", "*did you mean 'fake_cni'[?]"])
    assert project.journal == []


def test_tests_without_a_node_stay_where_pytest_put_them(project: Project) -> None:
    result = project.run(
        """
        import pytest

        def test_a(): pass
        @pytest.mark.k3s_layers("fake_cni")
        def test_b(k3s): pass
        def test_c(): pass
        @pytest.mark.k3s_layers("fake_cni")
        def test_d(k3s): pass
        """,
        "-v",
    )
    result.stdout.fnmatch_lines(
        ["*::test_a PASSED*", "*::test_b* PASSED*", "*::test_d* PASSED*", "*::test_c PASSED*"]
    )
    assert project.count["sandbox up"] == 1


def test_a_run_is_named_after_the_experiment_that_started_it(project: Project) -> None:
    result = project.run(
        """
        import pytest

        @pytest.mark.exp03
        @pytest.mark.k3s_layers("fake_cni")
        def test_a(k3s): pass

        @pytest.mark.exp05
        @pytest.mark.k3s_layers("none")
        def test_b(k3s): pass

        @pytest.mark.k3s_layers("workarounds")
        def test_c(k3s): pass
        """
    )
    result.assert_outcomes(passed=3)
    names = {run.name.split("-", 1)[1]: run.environment.experiment for run in project.runs if run.environment}
    assert names == {
        "exp03-gvisor-fake_cni": "exp03",
        "exp05-gvisor-none": "exp05",
        "test-gvisor-workarounds": "test",
    }
