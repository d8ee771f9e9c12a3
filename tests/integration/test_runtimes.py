"""Pods do the same with crun and with runc, beside each other on one node.

The default run has what is quick: one pod for each runtime, and one that cannot start. The rest is nightly.
What gVisor cannot do is asserted as the error that it gives.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.sandbox.base import BIN_DIR
from pytest_k3s_sandbox.settings import RUNTIMES
from support.outside import outside
from support.runtimes import CLASSES, NOTES, SECONDS, SLEEP, Side, manifest, need_crun

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.pytestplugin.namespaces import Namespaces

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(240),
]

MAIN = {
    "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hook > /work/hook"]}}},
    "readinessProbe": {"exec": {"command": ["test", "-f", "/work/hook"]}, "periodSeconds": 1},
    "resources": {
        "requests": {"cpu": "50m", "memory": "32Mi"},
        "limits": {"cpu": "200m", "memory": "64Mi"},
    },
    "volumeMounts": [{"name": "work", "mountPath": "/work"}],
}
WORK = {"volumes": [{"name": "work", "emptyDir": {}}]}


@pytest.fixture(scope="module")
def pods(k3s: Cluster, k3s_namespaces: Namespaces) -> Namespace:
    """A namespace with the pods of the default run, which come up side by side."""
    need_crun(k3s)
    namespace = k3s_namespaces(scope="module")
    made = [manifest("main", runtime, spec=WORK, **MAIN) for runtime in RUNTIMES]
    once = {"restartPolicy": "Never"}
    made += [manifest("missing", runtime, spec=once, command=["no-such-program"]) for runtime in RUNTIMES]
    namespace.apply([*CLASSES, *made])
    for runtime in RUNTIMES:
        namespace.wait(f"main-{runtime}", "Ready", timeout=SECONDS)
    return namespace


@pytest.fixture(params=RUNTIMES)
def side(request: pytest.FixtureRequest, k3s: Cluster, pods: Namespace) -> Side:
    return Side(k3s, pods, request.param)


@pytest.fixture
def main(side: Side) -> str:
    """The pod that is looked at by most tests."""
    return f"main-{side}"


def terminal(argv: list[str], environment: dict[str, str], typed: str, until: str) -> str:
    """Run a program on a terminal of 33 lines and 101 columns, and return what it shows up to a text."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        os.write(master, typed.encode())
        shown = b""
        try:
            while until.encode() not in shown:
                shown += os.read(master, 4096)
        except OSError:  # it has ended
            pass
        finally:
            process.kill()
            os.close(master)
    return shown.decode()


# What a default run looks at.


def test_a_pod_starts_with_the_runtime_of_its_class(side: Side, main: str) -> None:
    listed = json.loads(side.oci("list", "--format", "json").stdout)
    assert side.container(main) in {each["id"] for each in listed}


def test_exec_has_streams_and_an_exit_code(side: Side, main: str) -> None:
    words = ("sh", "-c", "cat; echo aside >&2; exit 7")
    done = side.namespace.exec(main, *words, stdin="given\n", check=False)
    assert (done.stdout, done.returncode) == ("given\n", 7)
    assert "aside\n" in done.stderr
    assert "no-such-program" in side.refused(main, "no-such-program")


def test_exec_has_a_terminal_of_the_callers_size(side: Side, main: str) -> None:
    script = 'until [ "$(stty size)" = "33 101" ]; do sleep 0.1; done; tty; read -r word; echo "got $word"'
    words = ("exec", "-it", "-n", str(side.namespace), main, "--", "sh", "-c", script)
    shown = terminal(*side.cluster.kubectl_command(*words), "typed\n", "got typed")
    assert "/dev/pts/" in shown
    assert "got typed" in shown


def test_a_hook_runs_after_the_start_and_the_probe_sees_what_it_made(side: Side, main: str) -> None:
    assert side.sh(main, "cat /work/hook") == "hook\n"
    status = side.status(main)
    assert (status["ready"], status["restartCount"]) == (True, 0)


def test_a_program_that_is_missing_is_named_as_the_reason(side: Side) -> None:
    pod = f"missing-{side}"
    side.wait(lambda: "terminated" in side.status(pod).get("state", {}), f"pod {pod} to have failed")
    ended = side.status(pod)["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
    assert "no-such-program" in ended["message"]
    assert "not found" in ended["message"]


# Hooks, probes and ends.


@pytest.mark.nightly
def test_a_hook_runs_before_the_end(side: Side) -> None:
    folder = {"name": "notes", "hostPath": {"path": NOTES, "type": "DirectoryOrCreate"}}
    note = f"/notes/{side}"
    pod = side.start(
        "hooks",
        spec={"volumes": [folder], "terminationGracePeriodSeconds": 20},
        volumeMounts=[{"name": "notes", "mountPath": "/notes"}],
        command=["sh", "-c", f"trap 'echo asked >> {note}; exit 0' TERM; sleep 1000 & wait"],
        lifecycle={"preStop": {"exec": {"command": ["sh", "-c", f"echo hook >> {note}"]}}},
    )
    side.namespace.delete(pod, timeout=60)
    assert side.node(["cat", f"{NOTES}/{side}"]).stdout == "hook\nasked\n"


@pytest.mark.nightly
def test_a_hook_that_fails_ends_its_container(side: Side) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo why >&2; exit 3"]}}}
    pod = side.start("failed-hook", "created", lifecycle=hook)
    side.wait(lambda: "PostStartHook" in side.warnings(pod), "the hook to fail")
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_liveness_probe_that_fails_restarts_its_container(side: Side) -> None:
    script = "test -f /work/well || { touch /work/well; touch /work/ill; }; " + SLEEP
    pod = side.start(
        "live",
        spec=WORK,
        command=["sh", "-c", script],
        volumeMounts=[{"name": "work", "mountPath": "/work"}],
        livenessProbe={
            "exec": {"command": ["sh", "-c", "rm /work/ill && exit 1; true"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
    )
    side.wait(lambda: side.status(pod)["restartCount"] == 1, "the container to be restarted")
    side.namespace.wait(pod, "Ready", timeout=SECONDS)
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_startup_probe_holds_the_others_back(side: Side) -> None:
    pod = side.start(
        "staged",
        "Running",
        startupProbe={
            "exec": {"command": ["test", "-f", "/tmp/go"]},  # noqa: S108 - of the container
            "periodSeconds": 1,
            "failureThreshold": 300,
        },
        livenessProbe={"exec": {"command": ["test", "-f", "/tmp/go"]}, "periodSeconds": 1},  # noqa: S108
    )
    time.sleep(5)
    status = side.status(pod)
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    side.sh(pod, "mkdir -p /tmp; touch /tmp/go")
    side.namespace.wait(pod, "Ready", timeout=SECONDS)
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_pod_on_a_terminal_is_attached_to(side: Side) -> None:
    pod = side.start("tty", tty=True, stdin=True, command=["sh"])
    words = ("attach", "-it", "-n", str(side.namespace), pod)
    typed = "tty; echo $((6 * 7)) answers\n"
    shown = terminal(*side.cluster.kubectl_command(*words), typed, "42 answers")
    assert "/dev/pts/0" in shown or "/dev/console" in shown
    assert "42 answers" in shown
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_last_word_and_a_code_are_in_the_status(side: Side) -> None:
    script = "echo the reason > /dev/termination-log; exit 3"
    pod = side.start("once", "Failed", spec={"restartPolicy": "Never"}, command=["sh", "-c", script])
    ended = side.status(pod)["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "the reason\n")


# What a container may do.


def field(side: Side, pod: str, name: str) -> str:
    """Return a field of the status of a container's shell."""
    return side.sh(pod, f"sed -n 's/^{name}:[[:space:]]*//p' /proc/self/status").strip()


@pytest.mark.nightly
def test_a_user_and_its_groups(side: Side) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000, "runAsNonRoot": True}
    mounts = [{"name": "work", "mountPath": "/work"}]
    pod = side.start("user", spec=WORK | {"securityContext": context}, volumeMounts=mounts)
    said = side.sh(pod, "id -u; id -g; id -G; touch /work/new; stat -c '%u %g' /work/new; stat -c %g /work")
    assert said.splitlines() == ["1000", "1001", "1001 2000", "1000 2000", "2000"]
    assert "denied" in side.refused(pod, "touch", "/new")
    # kubectl has no option for another user; the runtime has.
    done = side.oci("exec", "--user", "7:8", side.container(pod), "id")
    assert done.stdout.startswith("uid=7 gid=8")
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_container_that_must_not_be_root_is_refused(side: Side) -> None:
    pod = side.start("nonroot", "created", spec={"securityContext": {"runAsNonRoot": True}})

    def said() -> str:
        waiting = side.status(pod).get("state", {}).get("waiting", {})
        return str(waiting.get("message", ""))  # none while it is being created

    side.wait(lambda: "runAsNonRoot" in said(), f"pod {pod} to be refused")
    assert side.status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"


@pytest.mark.nightly
def test_a_root_that_cannot_be_written_and_no_capabilities(side: Side) -> None:
    context = {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    mounts = [{"name": "work", "mountPath": "/work"}]
    pod = side.start("bare", spec=WORK, securityContext=context, volumeMounts=mounts)
    assert "Read-only file system" in side.refused(pod, "touch", "/new")
    assert [int(field(side, pod, name), 16) for name in ("CapEff", "CapBnd")] == [0, 0]
    refused = side.refused(pod, "sh", "-c", "touch /work/new; chown 7 /work/new")
    assert "Operation not permitted" in refused
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_devices_of_a_container_and_of_a_privileged_one(side: Side, main: str) -> None:
    names = ("full", "null", "ptmx", "random", "tty", "urandom", "zero")
    usual = set(side.sh(main, "echo x > /dev/null; head -c 4 /dev/zero | wc -c >&2; ls /dev").split())
    assert usual.issuperset({*names, "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr"})
    pod = side.start("privileged", securityContext={"privileged": True})
    more = set(side.sh(pod, "ls /dev").split())
    assert more > usual - {"core"}
    few, many = (int(field(side, each, "CapEff"), 16) for each in (main, pod))
    assert few & many == few < many
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_seccomp_profiles(side: Side) -> None:
    """Effective with crun. runc is built without libseccomp: layers/workarounds/oci_spec.py drops them."""
    kept = side.runtime == "crun"
    folder = outside(side.sandbox, "/var/lib/kubelet/seccomp")
    folder.mkdir(exist_ok=True)
    blocked = {"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [blocked],
    }
    (folder / "chmod.json").write_text(json.dumps(profile))
    profiles = {
        "runtime-default": {"type": "RuntimeDefault"},
        "localhost": {"type": "Localhost", "localhostProfile": "chmod.json"},
    }
    script = "touch /file; chmod 700 /file 2>&1 && echo changed; unshare -U true 2>&1 && echo apart"
    said = {}
    for name, each in profiles.items():
        pod = side.start(name, securityContext={"seccompProfile": each})
        said[name] = side.sh(pod, f"{script}; true")
        side.namespace.delete(pod, timeout=60)
    assert ("apart" not in said["runtime-default"]) is kept, said
    assert "changed" in said["runtime-default"]
    assert ("changed" not in said["localhost"]) is kept, said
    assert "apart" in said["localhost"]


# What pods share, and what they are given.


def set_parameter(side: Side, name: str, value: str, obstacle: str | None) -> None:
    """Make a pod with a kernel parameter; it has it, or says why it cannot."""
    pod = side.start(
        "sysctl",
        "Ready" if obstacle is None else "created",
        spec={"securityContext": {"sysctls": [{"name": name, "value": value}]}},
    )
    path = name.replace(".", "/")
    if obstacle is None:
        assert side.sh(pod, f"cat /proc/sys/{path}").split() == value.split()
    else:
        side.wait(lambda: path.rpartition("/")[2] in side.warnings(pod), f"{name} to be refused")
        assert obstacle in side.warnings(pod)
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_kernel_parameters(side: Side) -> None:
    """In gVisor some are missing."""
    set_parameter(side, "net.ipv4.ip_local_port_range", "30000 31000", None)
    missing = None if side.sandbox.kind == "host" else "o such file"
    set_parameter(side, "kernel.shm_rmid_forced", "1", missing)


@pytest.mark.nightly
def test_a_name_and_processes_that_are_shared(side: Side) -> None:
    pod = side.start("shared", spec={"hostname": "named", "shareProcessNamespace": True})
    assert side.sh(pod, "hostname") == "named\n"
    first, rest = (side.sh(pod, f"cat {which}/cmdline") for which in ("/proc/1", "/proc/[2-9]*"))
    assert SLEEP in rest
    assert SLEEP not in first  # it is the sandbox container's
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_the_processes_of_the_node(side: Side, main: str) -> None:
    program = f"{BIN_DIR}/kubelet"
    script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    assert program not in side.sh(main, script)
    pod = side.start("hostpid", spec={"hostPID": True})
    assert program in side.sh(pod, script)
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_volume_in_memory_and_a_part_of_a_volume(side: Side) -> None:
    volumes = [
        {"name": "work", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
    ]
    mounts = [
        {"name": "memory", "mountPath": "/memory"},
        {"name": "work", "mountPath": "/part", "subPath": "a/b"},
        {"name": "work", "mountPath": "/whole"},
    ]
    pod = side.start("volumes", spec={"volumes": volumes}, volumeMounts=mounts)
    script = "grep ' /memory ' /proc/mounts | cut -d' ' -f3; echo x > /part/file; cat /whole/a/b/file"
    assert side.sh(pod, script) == "tmpfs\nx\n"
    full = side.refused(pod, "dd", "if=/dev/zero", "of=/memory/file", "bs=1M", "count=5")
    assert "No space left" in full
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_a_checkpoint_is_refused_with_what_it_lacks(side: Side, main: str) -> None:
    path = f"/api/v1/nodes/{side.cluster.node.name}/proxy/checkpoint/{side.namespace}/{main}/it"
    done = side.cluster.kubectl("create", "--raw", path, "-f", "/dev/null", check=False)
    assert done.returncode != 0
    assert "CRIU binary not found" in done.stderr
