"""Experiment 07: a cgroup v1 filesystem in FUSE that tools believe.

First its numbers, which have to follow what processes do; then the programs that read and write
cgroups: cgroup-tools, runc, crun and cAdvisor, each alone and with the interceptor, whose share is the magic.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.controllers import DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.layers.cgroupfs.probe import CGROUP_SUPER_MAGIC, FUSE_SUPER_MAGIC
from pytest_k3s_sandbox.layers.interceptor.layer import PtraceInterceptor
from pytest_k3s_sandbox.layers.stack import LayerStack
from pytest_k3s_sandbox.layers.workarounds.layer import TREE, Workarounds
from pytest_k3s_sandbox.pytestplugin.claims import Claims
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, V9FS_MAGIC, root_magic
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.toolchain import ensure_system_packages
from pytest_k3s_sandbox.toolchain.packages import CGROUP_READERS, static_busybox

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.exp07, pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor")]

INSIDE = f"{STATE_DIR}/inside.py"
BUNDLE = f"{STATE_DIR}/bundle"
CGROUP = "/exp07/container"
BURN_TOLERANCE = 0.1
READ_TOLERANCE = 0.1
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
LIMITS = {"memory": 64 << 20, "shares": 512, "pids": 50}
METRICS = "127.0.0.1:8088"
INTERRUPTED = "interrupted system call"
LOOK_SECONDS = 5
"""How long cAdvisor is run: it reads once a second."""

TIMES = (
    "cpuacct.usage",
    "cpuacct.usage_percpu",
    "cpuacct.usage_user+usage_sys",
    "cpuacct.usage_all",
    "cpuacct.stat",
)
HIGHEST = "memory.max_usage_in_bytes"
SIZES = ("memory.usage_in_bytes", "memory.stat rss", "memory.stat total_rss", HIGHEST)


class Place:
    """A sandbox with the filesystem in it.

    Attributes:
        sandbox: The sandbox.
        system: Its kernel by statfs, ``gvisor`` or ``linux``; the sandbox's kind does not decide it.
        names: The layers' names.
        under: The words before a command that runs under the interceptor.
    """

    def __init__(self, sandbox: StartedSandbox, names: tuple[str, ...], under: tuple[str, ...]) -> None:
        """Put the program inside that asks."""
        self.sandbox = sandbox
        self.system = "gvisor" if root_magic(sandbox) == V9FS_MAGIC else "linux"
        self.names = names
        self.under = under
        self.answers: dict[tuple[str, ...], Any] = {}
        inside = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
        sandbox.files.write(INSIDE, inside)

    def ask(self, *words: str, wrap: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - JSON of the step
        """Return the answer of a step inside; each step runs once."""
        key = (*wrap, *words)
        if key not in self.answers:
            argv = [*wrap, sys.executable, "-I", "-S", INSIDE, *words]
            self.answers[key] = json.loads(self.sandbox.run(argv, timeout=60).stdout)
        return self.answers[key]

    def shell(self, script: str, *, intercepted: bool = False) -> tuple[int, str]:
        """Run a script; return its exit code and all that it wrote."""
        wrap = self.under if intercepted else ()
        done = self.sandbox.run([*wrap, "sh", "-c", script], check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module", params=["gvisor", "host"])
def place(
    request: pytest.FixtureRequest, k3s_toolchain: Toolchain, k3s_spec: NodeSpec, k3s_run: RunWriter
) -> Iterator[Place]:
    """The filesystem in a sandbox of each kind, and nothing of Kubernetes."""
    from pytest_k3s_sandbox.node.fingerprint import fingerprint

    ensure_system_packages([one for one in CGROUP_READERS if one.name != "lxcfs"])
    programs = [k3s_toolchain.get(name).path for name in ("runc", "crun", "cadvisor")]
    wanted = request.param
    with contextlib.ExitStack() as ending:
        with k3s_run.phase("sandbox"):
            sandbox: StartedSandbox = ending.enter_context(
                HostSandbox(programs=programs)
                if wanted == "host"
                else GvisorSandbox(k3s_toolchain.get("runsc").path, programs=programs)
            )
        with k3s_run.phase("layer workarounds"):
            own = root_magic(sandbox) == V9FS_MAGIC  # on plain Linux the tunables are the machine's
            parts = "kmsg+private+sysctl" if own else "kmsg+private+tree"
            workarounds = ending.enter_context(Workarounds.only(sandbox, parts))
        with k3s_run.phase("layer fuse_cgroupfs"):
            cgroupfs = ending.enter_context(FuseCgroupfs(sandbox))
        words = PtraceInterceptor(sandbox, "exp08", tree=TREE).overrides.wrap["kubelet"]
        stack = LayerStack(sandbox, (workarounds, cgroupfs))
        if wanted != "host" or k3s_run.environment is None:
            k3s_run.append(fingerprint(stack, k3s_spec, k3s_toolchain, "exp07"))
        yield Place(sandbox, stack.names, words)


@pytest.fixture(autouse=True)
def _where(request: pytest.FixtureRequest, place: Place) -> None:
    """Say in the results where a test ran: the run's own environment is the gvisor sandbox's."""
    request.node.user_properties += [("sandbox", place.sandbox.kind), ("layers", ",".join(place.names))]


@pytest.fixture
def claim(place: Place, k3s_run: RunWriter) -> Claims:
    """Record whether claims hold in this kind of sandbox, then assert them."""
    kind = place.sandbox.kind
    return Claims(k3s_run, suffix=f"-{kind}", prefix=f"{kind}: ")


@pytest.mark.parametrize("controller", DEFAULT)
def test_every_file_is_there_and_read(place: Place, controller: str, claim: Claims) -> None:
    """Every file of the model is there, in the root and in a group, and can be read if it is to be."""
    from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
    from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

    root = Tree(ProcAccounting(), [controller]).hierarchies[controller].root
    child = root.hierarchy.mkdir(root, "child")
    # gVisor's FUSE takes a refusal for the end of the file.
    refused = {"EINVAL", ""} if place.system == "gvisor" else {"EINVAL"}
    with claim.together() as each:
        for where, group in (("root", root), ("group", child)):
            text = f"All files of {controller} are read ({where})"
            with each.of(f"files-{controller}-{where}", text, limit=len(group.files())) as one:
                seen = place.ask("files", controller)[where]
                assert set(seen) == set(group.files())
                wrong = {
                    name: content
                    for name, content in seen.items()
                    if (
                        content not in refused
                        if group.hierarchy.files[name].read is None
                        else content == "EINVAL"
                    )
                }
                one.judge(not wrong, str(wrong) if wrong else len(seen))


@pytest.mark.parametrize("file", TIMES)
def test_processor_time_grows_by_what_is_burnt(place: Place, file: str, claim: Claims) -> None:
    """A process burns 1.5 s in a group; each file grows by that."""
    text = f"{file} grows by what is burnt"
    with claim.of(f"burn-{file}", text, limit=f"{BURN_TOLERANCE:.0%}") as one:
        seen = place.ask("burn")[file]
        off = abs(seen["grown"] / seen["burnt"] - 1)
        one.judge(off <= BURN_TOLERANCE, f"{seen['grown']:.3f} s for {seen['burnt']:.3f} s")


@pytest.mark.parametrize("file", SIZES)
def test_memory_follows_what_is_taken(place: Place, file: str, claim: Claims) -> None:
    """A process takes 96 MiB in a group and gives them back; each file follows, and the highest stays."""
    stays = file == HIGHEST
    text = f"{file} follows what is taken, and " + ("keeps the most" if stays else "given back")
    with claim.of(f"take-{file}", text, limit=f"{READ_TOLERANCE:.0%}") as one:
        seen = place.ask("allocate")[file]
        off = abs(seen["grown"] / seen["size"] - 1)
        one.judge(
            off <= READ_TOLERANCE
            and abs(seen["left"] - seen["size"] * stays) <= READ_TOLERANCE * seen["size"],
            f"{seen['grown'] >> 20} MiB of {seen['size'] >> 20}, {seen['left'] >> 20} MiB left",
        )


def test_processes_are_counted(place: Place, claim: Claims) -> None:
    """Seven processes join a group by writing 0, and leave it by their end."""
    wanted = {"pids.current": 7, "tasks": 7, "cgroup.procs": 7, "left": 0}
    with claim.of("fork", "pids.current, tasks and cgroup.procs follow", limit=str(wanted)) as one:
        seen = place.ask("fork")
        one.judge(seen == wanted, str(seen))


@pytest.mark.parametrize("intercepted", [False, True], ids=["alone", "intercepted"])
def test_the_magic(place: Place, claim: Claims, *, intercepted: bool) -> None:
    """Statfs and fstatfs say FUSE; only the interceptor makes that cgroup."""
    expected = CGROUP_SUPER_MAGIC if intercepted else FUSE_SUPER_MAGIC
    text = f"A program {'under the interceptor' if intercepted else 'by itself'} sees {expected:#x}"
    with claim.of(f"magic-{'intercepted' if intercepted else 'alone'}", text, limit=hex(expected)) as one:
        seen = place.ask("magic", wrap=place.under if intercepted else ())
        ours = {name: value for name, value in seen.items() if name.partition("/")[0] in DEFAULT}
        assert len(ours) == 2 * len(DEFAULT)
        one.judge(set(ours.values()) == {expected}, ", ".join(map(hex, sorted(set(ours.values())))))


@pytest.mark.parametrize("intercepted", [False, True], ids=["alone", "intercepted"])
def test_cgroup_tools_read_it(place: Place, claim: Claims, *, intercepted: bool) -> None:
    """Lscgroup lists a group, cgset changes it, cgget reads it."""
    with claim.of(
        f"tools-{'intercepted' if intercepted else 'alone'}", "cgroup-tools read and write it"
    ) as one:
        code, said = place.shell(
            "set -e; mkdir -p /sys/fs/cgroup/cpu/tools /sys/fs/cgroup/memory/tools; lscgroup;"
            "cgset -r cpu.shares=77 tools; cgget -n -v -r cpu.shares -r memory.limit_in_bytes tools;"
            "cgdelete -g cpu,memory:tools; ! test -e /sys/fs/cgroup/cpu/tools",
            intercepted=intercepted,
        )
        wanted = {"cpu:/tools", "memory:/tools", "77", "9223372036854771712"}
        one.judge(code == 0 and wanted <= set(said.splitlines()), said[-300:])


@pytest.fixture(scope="module")
def bundle(place: Place) -> dict[str, Any]:
    """A container with limits that prints and waits; its bundle is in the sandbox."""
    busybox = static_busybox({})
    assert busybox is not None
    files = place.sandbox.files
    for name in ("bin", "proc", "dev", "sys"):
        files.mkdir(f"{BUNDLE}/rootfs/{name}")
    files.copy_in(busybox, f"{BUNDLE}/rootfs/bin/busybox", 0o755)
    # No cgroup namespace, which gVisor refuses.
    namespaces = [{"type": name} for name in ("pid", "mount", "ipc", "uts")]
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "sh", "-c", "echo hello from inside; sleep 30"],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            # As every runtime's `spec` has it. gVisor makes no devices on 9p, and crun 1.21 insists on them.
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {
            "cgroupsPath": CGROUP,
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}, NULL],
                "memory": {"limit": LIMITS["memory"]},
                "cpu": {"shares": LIMITS["shares"]},
                "pids": {"limit": LIMITS["pids"]},
            },
        },
    }
    files.write(f"{BUNDLE}/config.json", json.dumps(spec))
    return spec


STARTS = {
    ("runc", "gvisor", False): "no such file or directory",
    ("runc", "gvisor", True): None,
    ("crun", "gvisor", False): "creating cgroup directory",
    ("crun", "gvisor", True): None,
    ("runc", "linux", False): "no such file or directory",
    ("runc", "linux", True): None,
    ("crun", "linux", False): None,
    ("crun", "linux", True): None,
}
"""Which runtimes start a container on it, as it was found; for the others the words of their error.

By the magic runc tells where the cgroups' root ends, and without it makes no parent of a group in
cpuset: the magic is the interceptor's share. crun asks statx(2) for a file's type alone, and gVisor's
FUSE then answers with none, whatever the server says: the answer of Linux is the interceptor's share, too.
"""


RUN = f"""
{{program}} run -d --pid-file /run/{{name}}.pid -b {BUNDLE} {{name}} >/run/{{name}}.log 2>&1 </dev/null
code=$?
cat /run/{{name}}.log
cd /sys/fs/cgroup
cat memory{CGROUP}/memory.limit_in_bytes cpu{CGROUP}/cpu.shares pids{CGROUP}/pids.max
grep -c . pids{CGROUP}/cgroup.procs
grep -c '1:3 rw' devices{CGROUP}/devices.list
{{program}} delete -f {{name}} >/dev/null 2>&1
rmdir */exp07/container */exp07 2>/dev/null
test ! -e cpu/exp07 || echo left
exit $code
"""

WATCH = f"""
cd /sys/fs/cgroup
for c in *; do mkdir $c/watched; done
for f in cpus mems; do cat cpuset/cpuset.$f >cpuset/watched/cpuset.$f; done
sh -c 'for c in *; do echo 0 >$c/watched/cgroup.procs; done; exec sh -c "while :; do :; done"' & busy=$!
{BIN_DIR}/cadvisor --listen {METRICS} --allow_dynamic_housekeeping=false >/run/cadvisor.log 2>&1 & one=$!
sleep {LOOK_SECONDS}
{sys.executable} -I -c 'import urllib.request as u; print(u.urlopen("http://{METRICS}/metrics").read().decode())'
kill $one $busy; wait
for c in *; do rmdir $c/watched; done
grep '^[EF]\\|Failed' /run/cadvisor.log
"""


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("intercepted", [False, True], ids=["alone", "intercepted"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_runtimes_start_containers(place: Place, runtime: str, claim: Claims, *, intercepted: bool) -> None:
    """A container gets its limits, its process is in the group, and nothing of it is left."""
    program = f"{BIN_DIR}/{runtime} --root /run/exp07"
    name = f"{runtime}-{intercepted:d}"
    words = STARTS[runtime, place.system, intercepted]
    how = "intercepted" if intercepted else "alone"
    # Natively it is not seen whose child a clone(CLONE_PARENT) really is, and runc's first process is one.
    followed = "0" if (runtime, place.system) == ("runc", "linux") else "1"
    text = (
        f"{runtime} starts a container on it, {how}"
        if words is None
        else f"{runtime} does not start a container on it, {how}, and says '{words}'"
    )
    with claim.of(f"{runtime}-{how}", text) as one:
        code, said = place.shell(RUN.format(program=program, name=name), intercepted=intercepted)
        lines = [line for line in said.splitlines() if line]
        started = code == 0 and lines[-5:] == [*(str(value) for value in LIMITS.values()), followed, "1"]
        one.judge(started if words is None else not started and words in said, said[-500:])


@pytest.mark.parametrize("intercepted", [False, True], ids=["alone", "intercepted"])
def test_cadvisor_reads_it(place: Place, claim: Claims, *, intercepted: bool) -> None:
    """CAdvisor by itself serves the numbers of a group in which something runs, and logs no error."""
    if place.system == "linux":
        pytest.skip("not applicable: the machine's own kernel has the real thing")
    how = "intercepted" if intercepted else "alone"
    with (
        claim.together() as each,
        each.of(f"cadvisor-memory-{how}", f"cAdvisor serves the memory of that group, {how}") as memory,
        each.of(
            f"cadvisor-cpu-{how}",
            f"cAdvisor serves the processor time of a busy group, {how}",
            limit=f"{LOOK_SECONDS} s busy",
        ) as processor,
        each.of(
            f"cadvisor-errors-{how}",
            f"cAdvisor logs no error, {how}" + ("" if intercepted else ", but of interrupted calls"),
            limit=0,
        ) as clean,
    ):
        _, said = place.shell(WATCH, intercepted=intercepted)
        lines = said.splitlines()

        def value(metric: str) -> float:
            mine = [line for line in lines if line.startswith(metric + "{") and 'id="/watched"' in line]
            return sum(float(line.rpartition("}")[2].split()[0]) for line in mine)

        errors = [line for line in lines if line[:1] in {"E", "F"} or "Failed" in line]
        # gVisor ends a FUSE request when a signal comes, and Go sends itself signals.
        # Only the interceptor helps against that.
        interrupted = [] if intercepted else [line for line in errors if INTERRUPTED in line]
        errors = [line for line in errors if line not in interrupted]
        clean.judge(not errors, errors[0] if errors else f"0, and {len(interrupted)} interrupted calls")
        used = value("container_cpu_usage_seconds_total")
        processor.judge(1.0 <= used <= LOOK_SECONDS + 4, f"{used:.2f} s")
        rss = value("container_memory_rss")
        memory.judge(0 < rss < 1e8, f"{rss / 1024:.0f} KiB")
