"""Which program is taken: environment variable, PATH, cache, build."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import socket
from pathlib import Path

import pytest

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain import golang
from support.machines import Machine
from support.waiting import until

TOOL, OTHER = "k3sfake-tool", "k3sfake-other"
VARIABLE = "K3S_SANDBOX_K3SFAKE_TOOL"
FORK = multiprocessing.get_context("fork")


def test_environment_variable_goes_before_path(machine: Machine) -> None:
    machine.put(TOOL, machine.program())
    named = machine.home / "mine"
    named.write_text(machine.program("9.9"))
    named.chmod(0o755)
    machine.environ[VARIABLE] = str(named)
    found = machine.toolchain().get(TOOL)
    assert (found.path, found.version, found.origin) == (named, "9.9", "env")


@pytest.mark.parametrize(("mode", "cause"), [(None, "there is no such file"), (0o644, "cannot be executed")])
def test_environment_variable_that_names_no_program(machine: Machine, mode: int | None, cause: str) -> None:
    named = machine.home / "mine"
    if mode is not None:
        named.write_text(machine.program())
        named.chmod(mode)
    machine.environ[VARIABLE] = str(named)
    with pytest.raises(ConfigError, match=cause) as error:
        machine.toolchain().find(TOOL)
    assert VARIABLE in str(error.value)


def test_unknown_program_names_the_known(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=f"nonsense(.|\n)*{TOOL}"):
        machine.toolchain().get("nonsense")


def test_path_with_the_pinned_version(machine: Machine) -> None:
    path = machine.put(TOOL, machine.program())
    found = machine.toolchain().get(TOOL)
    assert (found.path, found.version, found.origin) == (path, "1.2.3", "path")


def test_path_with_another_version_is_passed_over_and_explained(machine: Machine) -> None:
    path = machine.put(TOOL, machine.program("1.2.4"))
    toolchain = machine.toolchain()
    assert toolchain.find(TOOL) is None
    assert f"{path} is version 1.2.4, wanted 1.2.3" in toolchain.why(TOOL)


def test_path_with_a_namesake_that_states_no_version(machine: Machine) -> None:
    machine.put(TOOL, "#!/bin/sh\necho usage; exit 1\n")
    toolchain = machine.toolchain()
    assert toolchain.find(TOOL) is None
    assert any("does not say a version" in note for note in toolchain.why(TOOL))


@pytest.mark.parametrize(
    ("minimum", "version", "taken"),
    [
        ("20240701", "20240630", False),
        ("20240701", "20240701", True),
        ("20240701", "20270101", True),
        ("1.8.1", "1.8.1", True),
        ("1.8.1", "1.21", True),
        ("1.8.1", "1.8", False),
        ("1.8.1", "1.8.1-rc1", False),
    ],
)
def test_minimum_instead_of_equality(machine: Machine, minimum: str, version: str, *, taken: bool) -> None:
    machine.pin(version="20260905", minimum=minimum)
    machine.put(TOOL, machine.program(version))
    assert (machine.toolchain().find(TOOL) is not None) is taken


def test_find_never_builds(machine: Machine) -> None:
    machine.go()
    assert machine.toolchain().find(TOOL) is None
    assert machine.builds == 0
    assert not machine.cache.exists()


def test_build_yields_the_group_once(machine: Machine) -> None:
    machine.go()
    toolchain = machine.toolchain()
    first, second = toolchain.get(TOOL), machine.toolchain().get(OTHER)
    assert (first.origin, second.origin) == ("build", "cache")
    assert first.path.parent == second.path.parent
    assert os.access(first.path, os.X_OK)
    assert machine.builds == 1
    assert machine.leftovers == []


def test_one_output_is_linked_under_every_name(machine: Machine) -> None:
    machine.go(body=f"cp {machine.home}/product $out")
    build = machine.pins.programs[TOOL].build
    assert build is not None
    machine.pin(build=type(build)(**{**vars(build), "output": "multi"}))
    toolchain = machine.toolchain()
    assert toolchain.get(TOOL).path.samefile(toolchain.get(OTHER).path)


def test_build_is_strict_whatever_the_user_set(machine: Machine) -> None:
    machine.go()
    machine.environ |= {
        "GOFLAGS": "-insecure -mod=mod",
        "GONOSUMDB": "*",
        "GONOSUMCHECK": "1",
        "GOINSECURE": "*",
        "GOSUMDB": "off",
        "GOTOOLCHAIN": "auto",
    }
    machine.toolchain().get(TOOL)
    seen = dict(line.split("=", 1) for line in (machine.home / "environment").read_text().splitlines())
    assert seen["GOFLAGS"] == "-mod=readonly"
    assert seen["GOTOOLCHAIN"] == "local"
    assert not {"GONOSUMDB", "GONOSUMCHECK", "GOINSECURE", "GOSUMDB"} & seen.keys()
    assert seen["GOMODCACHE"] == str(machine.cache / "go-mod")


def test_the_users_own_go_caches_are_used(machine: Machine) -> None:
    machine.go()
    machine.environ |= {"GOCACHE": "/somewhere/mine"}
    (machine.home / "no-build").mkdir()
    (machine.home / "no-mod").mkdir()
    machine.toolchain().get(TOOL)
    seen = (machine.home / "environment").read_text()
    assert "GOCACHE=/somewhere/mine" in seen
    assert "GOMODCACHE=" not in seen


def test_go_that_is_too_old_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go(version="1.23.0")
    asked: list[str] = []

    def install(pin: object, *_: object) -> golang.Go:
        asked.append(str(pin))
        raise ProvisionError("would install")

    monkeypatch.setattr(golang, "install_go", install)
    with pytest.raises(ProvisionError, match="would install"):
        machine.toolchain().get(TOOL)
    assert "k3sfake-go" in asked[0]
    assert machine.builds == 0


def test_go_installation_that_fails_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        golang, "_installer", lambda *_: ["/bin/sh", "-c", "echo no such package >&2; exit 1"]
    )
    machine.environ["PATH"] = str(machine.home / "bin")
    with pytest.raises(ProvisionError, match="no such package"):
        machine.toolchain().get(TOOL)
    assert list((machine.cache / "toolchains").iterdir()) == []


def test_go_from_the_index_is_installed_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go(version="1.25.0")
    (machine.home / "bin/go").rename(machine.home / "packed-go")
    runs = machine.home / "installs"

    def installer(target: Path, requirements: Path, _: object) -> list[str]:
        assert "--hash=sha256:" in requirements.read_text()
        install = f"mkdir -p {target}/go/bin && cp {machine.home}/packed-go {target}/go/bin/go"
        return ["/bin/sh", "-c", f"echo run >> {runs}; {install}; chmod 644 {target}/go/bin/go"]

    monkeypatch.setattr(golang, "_installer", installer)
    assert machine.toolchain().get(TOOL).origin == "build"
    (machine.home / "module/go.sum").write_text("changed")
    assert machine.toolchain().get(TOOL).origin == "build"
    assert runs.read_text() == "run\n"


def test_another_go_sum_is_another_key(machine: Machine) -> None:
    machine.go()
    before = machine.toolchain().get(TOOL).path
    (machine.home / "module/go.sum").write_text("other sums\n")
    after = machine.toolchain().get(TOOL)
    assert after.origin == "build"
    assert after.path != before


def test_build_that_fails_names_cause_and_log(machine: Machine) -> None:
    machine.go(body="echo 'main.go:1: undefined: x' >&2; exit 3")
    with pytest.raises(ProvisionError, match="undefined: x") as error:
        machine.toolchain().get(TOOL)
    assert error.value.log is not None
    assert "undefined: x" in error.value.log.read_text()
    assert not machine.entries
    assert not machine.leftovers


def test_build_that_lacks_a_program(machine: Machine) -> None:
    machine.go(body=f"cp {machine.home}/product $out/{TOOL}")
    with pytest.raises(ProvisionError, match=f"no {OTHER}"):
        machine.toolchain().get(TOOL)
    assert not machine.entries
    assert not machine.leftovers


def test_unsupported_architecture_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(MissingCapability, match="riscv64"):
        machine.toolchain().get(TOOL)
    with pytest.raises(MissingCapability, match="riscv64"):
        machine.toolchain().provision([TOOL])
    assert machine.builds == 0


def test_offline_with_a_full_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go()
    machine.toolchain().get(TOOL)
    (machine.home / "bin/go").unlink()

    def no_network(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(golang, "install_go", no_network)
    assert machine.toolchain().get(TOOL).origin == "cache"


def test_changed_file_is_detected_and_built_again(machine: Machine) -> None:
    machine.go()
    path = machine.toolchain().get(TOOL).path
    before = path.stat()
    path.write_text(machine.program("6.6.6"))  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    toolchain = machine.toolchain()
    assert toolchain.find(TOOL) is None
    assert any("sha256 is not the recorded one" in note for note in toolchain.why(TOOL))
    assert toolchain.get(TOOL).origin == "build"
    assert path.read_text() == machine.program()
    assert machine.leftovers == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damage_without_the_means_to_repair_is_one_error(
    machine: Machine, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.go()
    path = machine.toolchain().get(TOOL).path
    if damage == "truncate":
        path.write_text("")
    elif damage == "remove":
        path.unlink()
    else:
        (path.parent / "manifest.json").write_text("{")
    machine.pin(build=machine.pins.programs[TOOL].build)
    monkeypatch.setattr(type(machine.toolchain()), "_from_build", lambda *_: None)
    with pytest.raises(ProvisionError, match=f"cached file (.*){TOOL}"):
        machine.toolchain().get(TOOL)


def test_copied_cache_is_hashed_again_and_kept(machine: Machine) -> None:
    machine.go()
    path = machine.toolchain().get(TOOL).path
    manifest = (path.parent / "manifest.json").read_text()
    os.utime(path, (1, 1))
    assert machine.toolchain().get(TOOL).origin == "cache"
    assert (path.parent / "manifest.json").read_text() != manifest
    assert machine.builds == 1


def test_two_processes_build_one_key_once(machine: Machine) -> None:
    machine.go()
    script = machine.home / "bin/go"
    script.write_text(script.read_text().replace("while [", "sleep 0.7\nwhile [", 1))
    queue = FORK.SimpleQueue()
    racers = [
        FORK.Process(target=lambda: queue.put(str(machine.toolchain().get(TOOL).path))) for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(20)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert queue.get() == queue.get()
    assert machine.builds == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_end_in_the_middle_of_a_build_leaves_no_entry(machine: Machine, number: int) -> None:
    started = machine.home / "started"
    machine.go(
        body=f"echo half > $out/{TOOL}; echo $$ > {started}.new; mv {started}.new {started}; exec sleep 60"
    )
    builder = FORK.Process(target=lambda: machine.toolchain().get(TOOL))
    builder.start()
    until(started.exists)
    assert builder.pid is not None
    os.kill(builder.pid, number)
    builder.join(20)
    assert builder.exitcode != 0
    assert machine.entries == []
    sleeper = Path("/proc") / started.read_text().strip()
    until(lambda: not sleeper.exists() or "zombie" in (sleeper / "status").read_text())
    if number == signal.SIGINT:
        assert machine.leftovers == []
    machine.go()
    assert machine.toolchain().get(TOOL).origin == "build"
    assert machine.leftovers == []


def test_reap_removes_what_the_dead_left_but_not_what_is_in_work(machine: Machine) -> None:
    toolchain = machine.toolchain()
    for key in ("dead", "busy"):
        (machine.cache / f"entries/{key}.tmp-1/content").mkdir(parents=True)
    with toolchain.cache.lock("busy"), toolchain.cache.lock("other"):
        toolchain.cache.reap()
    assert machine.leftovers == ["busy.tmp-1"]


def test_full_disk_in_the_build(machine: Machine) -> None:
    machine.go(body="echo 'link: write /x: no space left on device' >&2; exit 1")
    with pytest.raises(ProvisionError, match="no space left on the device of") as error:
        machine.toolchain().get(TOOL)
    assert "K3S_SANDBOX_CACHE" in str(error.value)
    assert not machine.entries
    assert not machine.leftovers


def test_full_disk_while_the_entry_is_made(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_k3s_sandbox.toolchain.cache._write_manifest", full)
    with pytest.raises(ProvisionError, match="no space left on the device of"):
        machine.toolchain().get(TOOL)
    assert not machine.entries
    assert not machine.leftovers


def test_cache_that_cannot_be_made(machine: Machine) -> None:
    machine.go()
    machine.cache.write_text("a file where the folder should be")
    with pytest.raises(ProvisionError, match="K3S_SANDBOX_CACHE"):
        machine.toolchain().get(TOOL)


def test_provision_gets_everything_that_is_not_optional(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.go()
    monkeypatch.setattr("pytest_k3s_sandbox.toolchain.packages.RUN", ())
    got = machine.toolchain().provision()
    assert [each.name for each in got] == [TOOL, OTHER]
    assert machine.toolchain().provision([OTHER])[0].origin == "cache"
    with pytest.raises(ConfigError):
        machine.toolchain().provision(["nonsense"])
