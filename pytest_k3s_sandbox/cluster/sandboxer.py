"""The sandboxer: one process that holds the namespaces of pods and runs their containers.

By itself containerd starts a shim for each pod, by a run of the shim that ends, and a container that only
holds namespaces (pause), which takes half of the runs of the OCI runtime. Starting programs is the dear part
of a pod in gVisor. containerd accepts another *sandbox controller* by a socket (its ``proxy_plugins``, type
"sandbox"); ours is ``toolchain/go/sandboxer``, with task services of containerd's own shim in it.

It stays when containerd ends, as shims do. When it ends, containerd is ended, so that it is started again and
takes stock: the containers are removed then, and the kubelet makes the pods again.
"""

from __future__ import annotations

from pytest_k3s_sandbox.sandbox.base import BIN_DIR

PROGRAM = "k3s-sandboxer"
"""The program, the name of the controller in containerd's configuration, and the process's name."""

FOLDER = "/run/k3s-sandbox/sandboxer"
TASKS = "/run/containerd/runc/k8s.io"
"""The state of the OCI runtimes: crun has a file ``status`` for each container, runc ``state.json``."""

START = f"""
mkdir -p {FOLDER}
echo $$ >{FOLDER}/containerd
read -r pid 2>/dev/null <{FOLDER}/pid && read -r name 2>/dev/null <"/proc/$pid/comm"
if [ "$name" != {PROGRAM} ]; then
  for state in {TASKS}/*/status; do
    test -e "$state" || continue
    state=${{state%/status}}
    {BIN_DIR}/crun --root {TASKS} delete --force "${{state##*/}}"
  done
  setsid sh -c '
    until test -S "$TTRPC_ADDRESS"; do sleep 0.02; done
    {BIN_DIR}/{PROGRAM} "$@"
    read -r pid <{FOLDER}/containerd && kill -KILL "$pid"
  ' sh {FOLDER} "$1" "$2" "$3" &
fi
shift 3
exec "$@"
"""
"""Starts a sandboxer unless one runs, and becomes containerd.

Its arguments are the CRI plugin's root and state, containerd's socket, and containerd's command.
"""


def started_with(containerd: list[str], root: str, state: str, socket: str) -> list[str]:
    """Return the command that starts a sandboxer, if none runs, and becomes containerd.

    Args:
        containerd: containerd's command.
        root: containerd's ``root``, a path inside.
        state: containerd's ``state``, a path inside.
        socket: containerd's socket, a path inside.
    """
    cri = "io.containerd.grpc.v1.cri"
    script = f"export TTRPC_ADDRESS={socket}.ttrpc{START}"
    return ["sh", "-c", script, "sh", f"{root}/{cri}", f"{state}/{cri}", socket, *containerd]


def plugin() -> str:
    """Return the section of containerd's configuration (TOML) that names the controller."""
    return f"""
[proxy_plugins.{PROGRAM}]
  type = "sandbox"
  address = "{FOLDER}/controller.sock"
"""
