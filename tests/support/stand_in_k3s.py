"""A stand-in for the official k3s binary, for machines that cannot have it. It is not k3s.

It refuses to start unless its arguments, environment and files are exactly those that k3s is to be
given, written down here once more and independently; then it does what k3s does with them, by starting
the parts that k3s is made of, which a test has put into :data:`PARTS`.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

VERSION = "k3s version v1.34.4+stand-in (not k3s)"
STATE = Path("/var/lib/k3s-sandbox")
PARTS = STATE / "parts"
KUBECONFIG = STATE / "k3s.kubeconfig"
TOKEN = STATE / "k3s-token"
SOCKET = "/run/k3s/containerd/containerd.sock"
SATISFIED = "stand-in: arguments, environment and files are those that k3s is to be given"
REFUSAL = 64
PATIENCE = 10
"""Seconds that the parts have for ending."""

SERVER = """
--https-listen-port={port} --advertise-address={ip} --tls-san={ip}
--token-file=/var/lib/k3s-sandbox/k3s-token
--write-kubeconfig=/var/lib/k3s-sandbox/k3s.kubeconfig --write-kubeconfig-mode=600
--flannel-backend=none --disable-network-policy --disable-kube-proxy --disable-cloud-controller
--disable-helm-controller --disable=coredns,servicelb,traefik,local-storage,metrics-server
"""
NODE = """
--data-dir={data} --snapshotter=native --node-ip={ip} --node-name={name}
--pause-image=registry.k8s.io/pause:3.10
--kubelet-arg=config=/var/lib/k3s-sandbox/k3s-kubelet.json
--kubelet-arg=cgroups-per-qos=false --kubelet-arg=enforce-node-allocatable=
--kubelet-arg=fail-swap-on=false
--kubelet-arg=image-gc-high-threshold=100 --kubelet-arg=image-gc-low-threshold=99
"""
AGENT = """
--server=https://{ip}:{port} --token-file=/var/lib/k3s-sandbox/k3s-token --lb-server-port={balancer}
"""
WHOLE, DATA, AGENT_DATA = "server", "/var/lib/k3s-sandbox/k3s", "/var/lib/k3s-sandbox/k3s-agent"
WORDS = {
    WHOLE: (f"server {SERVER} {NODE}", DATA),
    "server --disable-agent": (f"server {SERVER} --data-dir={DATA} --disable-agent", DATA),
    "agent": (f"agent {AGENT} {NODE}", AGENT_DATA),
}
"""What k3s is called with, as server and node, as server alone and as agent, and its data folder."""

NODE_NAME = "k3s-sandbox"
"""Whom a server alone makes certificates for; k3s makes them when an agent asks."""

ENVIRONMENT = {"PATH", "HOME", "LANG", "LC_ALL", "PYTHONDONTWRITEBYTECODE"}
"""The variables that a sandbox gives to every process; any other could change what k3s does."""


class Refused(Exception):
    """Something that k3s was to be given is missing or different."""


def say(line: str) -> None:
    """Write a line to what is the log of k3s."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def given(arguments: Sequence[str], flag: str) -> str:
    """Return a flag's value, empty if it is not there."""
    return next((word.partition("=")[2] for word in arguments if word.startswith(f"{flag}=")), "")


def check_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return which of :data:`WORDS` the arguments are, and what was filled in.

    Raises:
        Refused: They are none of these; names the first difference.
    """
    role = "server --disable-agent" if "--disable-agent" in arguments else (arguments or [""])[0]
    if role not in WORDS:
        raise Refused(f"command {role!r}")
    text, data = WORDS[role]
    address = given(arguments, "--node-ip") or given(arguments, "--advertise-address")
    port = given(arguments, "--https-listen-port") or given(arguments, "--server").rpartition(":")[2]
    if not (port.isdecimal() and address.count(".") == 3):
        raise Refused(f"port {port!r}, address {address!r}")
    filled = {
        "ip": address,
        "port": port,
        "name": given(arguments, "--node-name"),
        "data": data,
        "balancer": str(int(port) + 3),
    }
    wanted = text.format(**filled).split()
    for index, (has, wants) in enumerate(zip(arguments, wanted, strict=False)):
        if has != wants:
            raise Refused(f"argument {index} is {has!r} instead of {wants!r}")
    if len(arguments) != len(wanted):
        raise Refused(f"{len(arguments)} arguments instead of {len(wanted)}")
    return role, filled


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse variables that k3s, containerd or Go would listen to, and a PATH without k3s.

    Raises:
        Refused: There is one; names it.
    """
    for name in sorted(set(environment) - ENVIRONMENT):
        if not name.startswith("_"):  # a shell's own
            raise Refused(f"environment variable {name}={environment[name]!r}")
    if "/opt/k3s-sandbox/bin" not in environment.get("PATH", "").split(":"):
        raise Refused(f"PATH is {environment.get('PATH')!r}")


def expect(what: str, has: object, wants: object) -> None:
    """Refuse a thing that is not what it should be.

    Raises:
        Refused: It is not.
    """
    if has != wants:
        raise Refused(f"{what} is {has!r} instead of {wants!r}")


def image_names(tar: Path) -> list[str]:
    """Return the names of the images in an OCI layout."""
    with tarfile.open(tar) as archive:
        member = archive.extractfile("index.json")
        if member is None:
            raise Refused(f"{tar} has no index.json")
        index = json.load(member)
    return [each["annotations"]["io.containerd.image.name"] for each in index["manifests"]]


def check_node_files(data: Path) -> dict[str, Any]:
    """Return containerd's configuration after a look at all the files that a node reads.

    Raises:
        Refused: One is missing or wrong.
    """
    names = sorted(name for tar in (data / "agent/images").glob("*.tar") for name in image_names(tar))
    expect("agent/images", names, ["docker.io/library/busybox:1.36", "registry.k8s.io/pause:3.10"])
    text = (data / "agent/etc/containerd/config-v3.toml.tmpl").read_text()
    expect("a template action in containerd's template", "{{" in text, wants=False)
    config: dict[str, Any] = tomllib.loads(text)
    expect("version", config["version"], 3)
    expect("root", config["root"], f"{data}/agent/containerd")
    expect("state", config["state"], "/run/k3s/containerd")
    expect("address", config["grpc"]["address"], SOCKET)
    cri = config["plugins"]["io.containerd.cri.v1.runtime"]
    expect("CNI configurations", len(list(Path(cri["cni"]["conf_dir"]).glob("*.conflist"))), 1)
    plugins = [each for folder in cri["cni"]["bin_dirs"] for each in Path(folder).glob("*")]
    expect("a CNI plugin that can be executed", any(os.access(each, os.X_OK) for each in plugins), wants=True)
    runtime = cri["containerd"]["runtimes"]["runc"]["options"]["BinaryName"]
    expect(f"whether {runtime} can be executed", os.access(runtime, os.X_OK), wants=True)
    kubelet = json.loads((STATE / "k3s-kubelet.json").read_text())
    expect("kind", kubelet["kind"], "KubeletConfiguration")
    expect("cgroupDriver", kubelet["cgroupDriver"], "cgroupfs")
    return config


def check_interceptor() -> None:
    """Make sure that a node in gVisor is under the interceptor: its root is 9p, and must not look so.

    Raises:
        Refused: It does.
    """
    if "gvisor" in os.uname().release:
        first = Path("/proc/self/mountinfo").read_text().partition("\n")[0]
        expect("the root's type, as the interceptor shows it", first.split(" - ")[1].split()[0], "ext4")


class Parts:
    """The parts of k3s, as children with its standard output, like its own threads."""

    def __init__(self) -> None:
        """None runs yet."""
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "PATH": f"{PARTS}:{os.environ['PATH']}"}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.end)

    def start(self, argv: Sequence[str], log: Path | None = None) -> None:
        """Start one; its program is taken from :data:`PARTS`."""
        name = Path(argv[0]).name
        output = log.open("ab") if log is not None else None
        self.running[name] = subprocess.Popen(
            [str(PARTS / name), *argv[1:]], stdout=output, stderr=output, env=self._environment
        )

    def run(self, *argv: str) -> None:
        """Run one to its end."""
        subprocess.run([str(PARTS / argv[0]), *argv[1:]], check=True, env=self._environment)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, as long as all parts run."""
        while not condition():
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """End as k3s does when a part has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                self.fail(f"{name} exited: exit status {process.returncode}")

    def fail(self, message: str) -> NoReturn:
        """Say why, in the form of k3s, and end."""
        say(f'time="now" level=fatal msg="{message}"')
        self.end()

    def end(self, _number: int = 0, _frame: FrameType | None = None) -> NoReturn:
        """End all parts; pods stay, as with k3s, which would end with them at once."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for name, process in self.running.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                say(f'time="now" level=warning msg="{name} did not end in {PATIENCE} s"')
                process.kill()
                process.wait()
        sys.exit(0 if _number else 1)


def control_plane(parts: Parts, settings: Any) -> None:  # noqa: ANN401 - imported where it is used
    """Start what k3s' server consists of, and write the kubeconfig as k3s does: for itself."""
    from pytest_k3s_sandbox.cluster import certificates, components
    from pytest_k3s_sandbox.cluster.reading import ApiReader

    folder = Path(components.PKI_DIR)
    if not (folder / "apiserver.crt").exists():  # a later start goes on with the same
        pki = certificates.write_pki(folder, node=settings.node, address=settings.address)
        for name, pair in {
            "controller-manager": pki.controller_manager,
            "scheduler": pki.scheduler,
            "kubelet": pki.kubelet_client,
        }.items():
            certificates.write_kubeconfig(
                folder / f"{name}.kubeconfig", server=settings.api_url, ca=pki.ca.cert, client=pair
            )
        parts_of = {"ca": pki.ca.cert, "cert": pki.admin.cert, "key": pki.admin.key}
        encoded = {name: base64.b64encode(path.read_bytes()).decode() for name, path in parts_of.items()}
        server = f"https://127.0.0.1:{settings.api_port}"
        # YAML, and complete from one moment to the next only if it is small: k3s does not rename it either.
        KUBECONFIG.touch(mode=0o600)
        KUBECONFIG.write_text(
            f"apiVersion: v1\nkind: Config\ncurrent-context: default\n"
            f"clusters:\n- name: default\n  cluster:\n    server: {server}\n"
            f"    certificate-authority-data: {encoded['ca']}\n"
            f"contexts:\n- name: default\n  context: {{cluster: default, user: default}}\n"
            f"users:\n- name: default\n  user:\n    client-certificate-data: {encoded['cert']}\n"
            f"    client-key-data: {encoded['key']}\n"
        )
    (STATE / "db").mkdir(exist_ok=True)
    Path(components.KINE_SOCKET).unlink(missing_ok=True)
    parts.start(components.kine())
    parts.until(Path(components.KINE_SOCKET).exists)
    parts.start(components.kube_apiserver(settings))
    parts.until(ApiReader(settings, folder).answers)
    parts.start(components.kube_controller_manager())
    parts.start(components.kube_scheduler())


def node(parts: Parts, settings: Any, config: Mapping[str, Any], arguments: Sequence[str]) -> None:  # noqa: ANN401 - as above
    """Start what k3s' agent consists of."""
    from pytest_k3s_sandbox.cluster import components

    data = Path(config["root"]).parent.parent
    password = Path("/etc/rancher/node/password")
    password.parent.mkdir(parents=True, exist_ok=True)
    password.write_text("secret\n")
    (data / "data").mkdir(exist_ok=True)
    Path(components.MANIFESTS).mkdir(exist_ok=True)
    unpacked = data / "data/current"
    if not unpacked.exists():
        unpacked.mkdir()
        (unpacked / "bin").symlink_to(PARTS)
    made = data / "agent/etc/containerd/config.toml"
    made.write_text((made.parent / "config-v3.toml.tmpl").read_text())
    log = data / "agent/containerd/containerd.log"
    log.parent.mkdir(exist_ok=True)
    Path(SOCKET).unlink(missing_ok=True)
    parts.start(["containerd", "-c", str(made)], log)
    parts.until(Path(SOCKET).exists)
    for tar in sorted((data / "agent/images").glob("*.tar")):
        parts.run(
            "ctr",
            "-a",
            SOCKET,
            "-n",
            "k8s.io",
            "images",
            "import",
            "--local",
            "--snapshotter",
            "native",
            str(tar),
        )
    flags = [word.removeprefix("--kubelet-arg=") for word in arguments if word.startswith("--kubelet-arg=")]
    kubelet = components.kubelet_config(settings) | {"containerRuntimeEndpoint": f"unix://{SOCKET}"}
    # As k3s: the user's file over its own configuration, all other arguments as flags.
    kubelet |= json.loads(Path(given(flags, "config")).read_text())
    (STATE / "kubelet.json").write_text(json.dumps(kubelet))
    words = [f"--{flag}" for flag in flags if not flag.startswith("config=")]
    parts.start([*components.kubelet(settings), *words])


def main() -> int:
    """Be k3s, as far as a node needs it."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        say(VERSION)
        return 0
    try:
        role, filled = check_arguments(arguments)
        check_environment(os.environ)
        expect("the mode of the token", oct(stat.S_IMODE(TOKEN.stat().st_mode)), "0o600")
        expect("the token's length", len(TOKEN.read_text().strip()), 32)
        expect("whether /etc/rancher can be written", os.access("/etc/rancher", os.W_OK), wants=True)
        config: dict[str, Any] = {}
        if "--disable-agent" not in role:
            config = check_node_files(Path(filled["data"]))
            check_interceptor()
    except (Refused, OSError, KeyError, ValueError) as error:
        say(f'time="now" level=fatal msg="stand-in: {type(error).__name__}: {error}"')
        return REFUSAL
    say(f"{SATISFIED}: {role}")
    from pytest_k3s_sandbox.cluster.components import ClusterSettings

    settings = ClusterSettings(filled["name"] or NODE_NAME, filled["ip"], int(filled["port"]))
    parts = Parts()
    try:
        if role != "agent":
            control_plane(parts, settings)
        if config:
            node(parts, settings, config, arguments)
    except (OSError, subprocess.SubprocessError) as error:
        parts.fail(str(error))
    while True:
        parts.check()
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
