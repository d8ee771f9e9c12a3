"""Options: command line before environment before ini file; wrong values say where they came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox import settings
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.settings import Given

SHOW = """
import pytest
from pytest_k3s_sandbox.pytestplugin.activation import activate

def test_show(request):
    s = activate(request.config)
    with open("seen", "w") as file:
        print(s.sandbox, s.layers, s.scope, s.duration, s.report, s.keep, s.share, s.api_port, s.require,
              file=file)
        print(s.distribution, s.version, file=file)
"""


def seen(pytester: pytest.Pytester, *arguments: str) -> str:
    pytester.makepyfile(SHOW)
    result = pytester.runpytest_inprocess(*arguments)
    result.assert_outcomes(passed=1)
    return " ".join((pytester.path / "seen").read_text().splitlines())


def test_defaults(pytester: pytest.Pytester) -> None:
    expected = f"gvisor None session 120.0 {pytester.path}/reports always False 6443 False embedded None"
    assert seen(pytester) == expected


def test_every_option_from_the_command_line(pytester: pytest.Pytester) -> None:
    arguments = (
        "--k3s-sandbox=host",
        "--k3s-layers=fake_cni,workarounds",
        "--k3s-scope=session",
        "--k3s-duration=5m",
        "--k3s-report=/elsewhere",
        "--k3s-keep=never",
        "--k3s-share",
        "--k3s-api-port=7443",
        "--k3s-distribution=k3s",
        "--k3s-version=v1.36",
        "--k3s-require",
    )
    expected = "host ('workarounds', 'fake_cni') session 300.0 /elsewhere never True 7443 True k3s 1.36.3"
    assert seen(pytester, *arguments) == expected


def test_environment_before_ini_and_command_line_before_both(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini(
        """
        [pytest]
        k3s_sandbox = host
        k3s_duration = 7
        k3s_keep = failed
        k3s_layers = none
        k3s_version = 1.35
        k3s_require = yes
        """
    )
    monkeypatch.setenv("K3S_DURATION", "8")
    monkeypatch.setenv("K3S_KEEP", "never")
    monkeypatch.setenv("K3S_SCOPE", "")  # as if it were not there
    expected = f"host () session 8.0 {pytester.path}/reports always False 6443 True embedded 1.35.4"
    assert seen(pytester, "--k3s-keep=always") == expected


FORMER = {
    "command line": ("--k3s-patience is now --k3s-timeout-scale", "--k3s-sandbox: 'here' is now 'host'"),
    "environment": (
        "environment variable K3S_PATIENCE is now --k3s-timeout-scale",
        "environment variable K3S_SANDBOX: 'here' is now 'host'",
    ),
    "ini": (
        "ini option k3s_patience is now --k3s-timeout-scale",
        "ini option k3s_sandbox: 'here' is now 'host'",
    ),
}


@pytest.mark.parametrize("source", FORMER)
def test_former_names_and_values_work_with_a_note_each(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    arguments = []
    if source == "command line":
        arguments = ["--k3s-patience=2.5", "--k3s-sandbox=here"]
    elif source == "environment":
        monkeypatch.setenv("K3S_PATIENCE", "2.5")
        monkeypatch.setenv("K3S_SANDBOX", "here")
    else:
        pytester.makeini("[pytest]\nk3s_patience = 2.5\nk3s_sandbox = here\n")
    pytester.makepyfile(
        """
        from pytest_k3s_sandbox.pytestplugin.activation import activate

        def test_it(request):
            settings = activate(request.config)
            assert (settings.sandbox, settings.timeout_scale) == ("host", 2.5)
        """
    )
    result = pytester.runpytest_inprocess(*arguments)
    result.assert_outcomes(passed=1)
    for line in FORMER[source]:
        result.stdout.fnmatch_lines([f"k3s-sandbox: {line}"])


def test_the_new_name_counts_before_the_former_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pytest_k3s_sandbox.pytestplugin.activation import activate

        def test_it(request):
            assert activate(request.config).timeout_scale == 3
        """
    )
    result = pytester.runpytest_inprocess("--k3s-patience=2", "--k3s-timeout-scale=3")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*is now*")


LAYERS = "workarounds, fuse_cgroupfs, ptrace_interceptor, fake_cni"
WRONG = {
    "sandbox": ("docker", ["'docker' is not one of gvisor, host"]),
    "layers": (
        "fake_cni,fuse_cgroups",
        ["unknown layer 'fuse_cgroups'", LAYERS, "did you mean 'fuse_cgroupfs'?"],
    ),
    "scope": ("test", ["'test' is not one of session, package, module, class, function"]),
    "duration": ("soon", ["'soon' is not a duration like 90s, 5m or 1h"]),
    "keep": ("sometimes", ["'sometimes' is not one of never, failed, always, running"]),
    "version": ("1.33", ["Kubernetes version '1.33'", "pinned are 1.34.4, "]),
    "distribution": ("k8s", ["'k8s' is not one of embedded, k3s"]),
    "api-port": ("65536", ["'65536' is not a TCP port (1 to 65535)"]),
}


@pytest.mark.parametrize("source", ["command line", "environment", "ini"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_a_usage_error_that_names_its_source(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    value, words = WRONG[name]
    dest = "k3s_" + name.replace("-", "_")
    arguments = []
    if source == "command line":
        arguments, named = [f"--k3s-{name}={value}"], f"--k3s-{name}: "
    elif source == "environment":
        monkeypatch.setenv(dest.upper(), value)
        named = f"environment variable {dest.upper()}: "
    else:
        pytester.makeini(f"[pytest]\n{dest} = {value}\n")
        named = f"ini option {dest}: "
    pytester.makepyfile("def test_it(k3s): pass")
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message = result.stderr.str()
    assert message.startswith(f"ERROR: {named}")
    for word in words:
        assert word in message
    assert "Traceback" not in message + result.stdout.str()


def test_a_flag_in_the_environment_has_a_value(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K3S_REQUIRE", "maybe")
    pytester.makepyfile("def test_it(k3s): pass")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: environment variable K3S_REQUIRE: 'maybe' is not one of 1, true*"])


@pytest.mark.parametrize("scope", ["package", "module", "class", "function"])
def test_what_is_shared_lives_for_the_session(pytester: pytest.Pytester, scope: str) -> None:
    pytester.makeini(f"[pytest]\nk3s_scope = {scope}\n")
    result = pytester.runpytest_inprocess("--k3s-share")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --k3s-share: * but ini option k3s_scope is {scope}"])


def outcome(parse: Callable[[], float]) -> float | str:
    """Return what was parsed, or the words of the refusal."""
    try:
        return parse()
    except ConfigError as error:
        return str(error)


UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@given(st.integers(1, 10**9), st.sampled_from(sorted(UNITS)))
def test_a_duration_is_a_number_and_a_unit(number: int, unit: str) -> None:
    assert settings.parse_duration(Given(f"{number}{unit}", "--k3s-duration")) == number * UNITS[unit]


@given(st.floats(0.001, 1e6))
def test_a_duration_may_have_a_fraction(number: float) -> None:
    assert settings.parse_duration(Given(f"{number!r}m", "--k3s-duration")) == pytest.approx(number * 60)


@given(st.text() | st.from_regex(r"-?[0-9a-f.]*(s|m|h|d|ms)?", fullmatch=True) | st.floats().map(repr))
def test_a_duration_is_positive_and_finite_or_refused_by_name(text: str) -> None:
    refusal = f"ini option k3s_duration: {text!r} is not a duration like 90s, 5m or 1h"
    seconds = outcome(lambda: settings.parse_duration(Given(text, "ini option k3s_duration")))
    assert seconds == refusal or (isinstance(seconds, float) and 0 < seconds < float("inf"))


@pytest.mark.parametrize(
    "text", ["", "s", "0", "-1", "-1m", "nan", "inf", "1e400", "5 minutes", "1h30m", "1w"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError):
        settings.parse_duration(Given(text, "--k3s-duration"))


@given(st.text() | st.integers().map(str) | st.from_regex(r"\d{1,6}", fullmatch=True))
def test_a_port_is_a_tcp_port_or_refused_by_name(text: str) -> None:
    port = outcome(lambda: settings.parse_port(Given(text, "--k3s-api-port")))
    is_port = text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536
    assert port == (int(text) if is_port else f"--k3s-api-port: {text!r} is not a TCP port (1 to 65535)")
