"""The layer that gives pods an address without a network."""

from __future__ import annotations

import contextlib
import json
import py_compile
import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_k3s_sandbox.errors import LayerError, SandboxError
from pytest_k3s_sandbox.layers.addresses import POD_RANGE, pods_of
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.cni.protocol import VERSIONS
from pytest_k3s_sandbox.layers.cni.script import as_libcni, script
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Completed, Sandbox
from pytest_k3s_sandbox.sandbox.trees import staged

FOLDER = f"{STATE_DIR}/cni"
"""The layer's folder inside: ``bin`` and ``net.d`` for containerd, ``lib`` and ``state`` for the plugin."""

STATE = "state"
"""The subfolder with the plugin's allocations."""

PLUGIN = "k3s-sandbox-fake-cni"
"""The plugin's ``type``, which is the name of its program."""

NETWORK = "k3s-sandbox"
"""The network's name."""

_MODULES = ("allocation.py", "protocol.py", "plugin.py")
# Linux before 5.1 and gVisor read only this much of a script's first line (BINPRM_BUF_SIZE - 2).
_LINE_LIMIT = 126


class FakeCni:
    """Gives pods an address of the node's range, without interfaces or connections.

    Args:
        sandbox: The sandbox of the node.
        pod_range: The IPv4 range to give out addresses of, at most a /30.
        python: The Python inside the sandbox that runs the plugin; by default the one that runs this.

    Raises:
        ConfigError: ``pod_range`` is not an IPv4 range, or too small.
    """

    def __init__(self, sandbox: Sandbox, pod_range: str = POD_RANGE, *, python: str = sys.executable) -> None:
        """Check the range; nothing is written yet."""
        pods_of(pod_range)  # raises ConfigError for one without room
        self._sandbox = sandbox
        self._pod_range = pod_range
        self._python = python

    @property
    def name(self) -> str:
        """The layer's name."""
        return "fake_cni"

    @property
    def overrides(self) -> NodeOverrides:
        """The folders for containerd's CRI plugin."""
        return NodeOverrides(cni_bin_dir=f"{FOLDER}/bin", cni_conf_dir=f"{FOLDER}/net.d")

    def __enter__(self) -> Self:
        """Write the plugin and its configuration list, and test them.

        Raises:
            LayerError: The plugin does not work in the sandbox; its files are removed.
        """
        try:
            with staged(self._sandbox.files, FOLDER) as folder:
                self._install(folder)
            health = self._try(("ADD",))
            self._forget()
        except (OSError, ValueError, SandboxError) as error:
            self._remove()
            raise LayerError("the fake CNI plugin did not come up", cause=str(error)) from error
        except BaseException:
            self._remove()
            raise
        if not health.ok:
            self._remove()
            raise LayerError("the fake CNI plugin did not come up", cause=_summary(health))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the plugin, its configuration and its allocations."""
        self._remove()

    def check(self) -> Health:
        """Run VERSION, ADD, CHECK and DEL for a temporary attachment.

        Returns:
            Healthy if each answer follows the CNI specification; the details have each answer.
        """
        return self._try(("VERSION", "ADD", "CHECK", "DEL"))

    def _try(self, commands: Sequence[str]) -> Health:
        """Run commands for a temporary attachment; in gVisor each takes 0.1 s of a start."""
        container = f"check-{uuid.uuid4().hex}"
        config = plugin_config(self._pod_range)
        details: dict[str, str] = {}
        answers: dict[str, dict[str, Any] | None] = {}
        for command in commands:
            before = {"prevResult": answers["ADD"]} if command == "CHECK" else {}
            lacking = None in before.values()
            answers[command] = None if lacking else self._ask(command, container, config | before, details)
        addresses = [ip.get("address") for ip in (answers["ADD"] or {}).get("ips", [])]
        if addresses:
            details["address"] = ", ".join(map(str, addresses))
        return Health(
            ok=None not in answers.values() and len(addresses) == 1,
            details=details,
        )

    def _ask(
        self, command: str, container: str, config: dict[str, Any], details: dict[str, str]
    ) -> dict[str, Any] | None:
        """Run the plugin once; return its answer ({} for none), or None for an error."""
        inside = f"{FOLDER}/{container}.{command}.json"
        self._sandbox.files.write(inside, as_libcni(config))
        program = shlex.quote(f"{FOLDER}/bin/{PLUGIN}")
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{FOLDER}/bin",
        }
        try:
            done = self._sandbox.run(
                ["sh", "-c", f"exec {program} < {shlex.quote(inside)}"], check=False, env=environment
            )
        finally:
            self._sandbox.files.remove(inside)
        return _answer(command, done, details)

    def _install(self, folder: Path) -> None:
        _write_plugin(folder, f"{FOLDER}/lib", self._python)
        text = script(
            shell=_shell(),
            python=f"{FOLDER}/lib/{PLUGIN}",
            config=plugin_config(self._pod_range),
            state=f"{FOLDER}/{STATE}/{NETWORK}",
        )
        _put_program(folder / "bin" / PLUGIN, text)
        (folder / STATE / NETWORK).mkdir(parents=True, mode=0o700)
        target = folder / "net.d" / "10-fake.conflist"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(conflist(self._pod_range), indent=2) + "\n")

    def _forget(self) -> None:
        """Release the address of the check without a DEL, which is one program more; no pod has one yet."""
        state = f"{FOLDER}/{STATE}/{NETWORK}"
        self._sandbox.files.remove(state)
        self._sandbox.files.mkdir(state, 0o700)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._sandbox.files.remove(FOLDER)


def plugin_config(pod_range: str) -> dict[str, Any]:
    """Return the configuration on the plugin's standard input (CNI specification, section 3)."""
    return {"cniVersion": VERSIONS[0], "name": NETWORK, **_plugin(pod_range)}


def conflist(pod_range: str) -> dict[str, Any]:
    """Return the network's configuration list (CNI specification, section 1).

    Its version is 1.0.0: from 1.1.0 on, containerd runs the plugin's STATUS for every status request of the
    kubelet (go-cni's ``libcni.Status``, libcni's ``GetStatusNetworkList``).

    Args:
        pod_range: The IPv4 range to give out addresses of.

    Returns:
        The content of a ``.conflist`` file.
    """
    return {"cniVersion": VERSIONS[0], "name": NETWORK, "plugins": [_plugin(pod_range)]}


def executable(lib: str, python: str) -> str:
    """Return the program that answers everything: a script that imports the plugin from a folder of its own.

    The modules are beside it, compiled, so that a start neither compiles them nor imports this package.

    Args:
        lib: The folder that holds the package ``fake_cni``, as seen inside.
        python: The Python to run it, as seen inside.

    Returns:
        The script's text.
    """
    # A script's first line allows one argument (execve(2)); -I implies -E.
    line = f"#!{python} -IS"
    if len(line) > _LINE_LIMIT or any(character.isspace() for character in python):
        # sh runs the second line and reads no further; for Python, it starts a string.
        line = f"#!/bin/sh\n'''exec' {shlex.quote(python)} -IS \"$0\" \"$@\"\n' '''"
    return (
        f"{line}\n"
        "import sys\n"
        f"sys.path.insert(0, {lib!r})\n"
        "from fake_cni.plugin import main\n"
        "sys.exit(main())\n"
    )


def _plugin(pod_range: str) -> dict[str, Any]:
    return {"type": PLUGIN, "ipam": {"type": "fake", "subnet": pod_range, "dataDir": f"{FOLDER}/{STATE}"}}


def _write_plugin(folder: Path, lib: str, python: str) -> None:
    package = folder / "lib" / "fake_cni"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    source = Path(__file__).parent
    for module in _MODULES:
        shutil.copyfile(source / module, package / module)
    for module in ("__init__.py", *_MODULES):
        # Unchecked: a file's time may differ inside.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(package / module), doraise=True, invalidation_mode=mode)
    _put_program(folder / "lib" / PLUGIN, executable(lib, python))


def _put_program(program: Path, text: str) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def _shell() -> str:
    """Return the shell that starts soonest: busybox, which is a program of one file."""
    busybox = shutil.which("busybox")
    return "/bin/sh" if busybox is None else f"{busybox} sh"


def _answer(command: str, done: Completed, details: dict[str, str]) -> dict[str, Any] | None:
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
    except ValueError:
        answer = None
    if done.returncode == 0 and isinstance(answer, dict):
        details[command] = "ok"
        return answer
    said = (done.stdout or done.stderr).strip()[-500:]
    details[command] = f"exit code {done.returncode}: {said or 'no output'}"
    return None


def _summary(health: Health) -> str:
    return "; ".join(f"{name}: {value}" for name, value in health.details.items() if value != "ok")
