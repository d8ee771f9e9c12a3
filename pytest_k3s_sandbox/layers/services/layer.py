"""The layer that makes Services work: a process in the sandbox that keeps DNAT rules for them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Any, Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers import ownprogram
from pytest_k3s_sandbox.layers.addresses import POD_RANGE, SERVICE_RANGE
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.services.rules import GVISOR_BYTES
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Process, Sandbox, described

FOLDER = f"{STATE_DIR}/services"
"""The layer's folder inside."""

STATUS = f"{FOLDER}/status.json"
"""What the process says of itself."""

KUBECONFIG = f"{STATE_DIR}/pki/kube-proxy.kubeconfig"
"""Where the process finds the API server, unless told otherwise."""

_TAIL = 2000  # characters of the log in an error
_LIMIT = 65536  # bytes of a status
_VALUE = 500  # characters of a value in a finding


def command(settings: Mapping[str, Any]) -> list[str]:
    """Return the command of the process. No thread in a read without an end keeps it.

    Args:
        settings: Its settings; see :class:`.__main__.Settings`.
    """
    package = "pytest_k3s_sandbox.layers.services"
    return ownprogram.argv(package, json.dumps(settings), leave="os._exit")


class Services:
    """Keeps rules for Services while it is entered; implements :class:`~..base.Layer`.

    Args:
        sandbox: Where the node runs.
        kubeconfig: The file inside with the API server and a client that may list and watch Services and
            EndpointSlices. It need not be there yet.
        service_range: The range of the Services' addresses.
        pod_range: The range of the pods' addresses.
        gateway: The pods' gateway; by default the first address of their range.
        node: The node's name, by default that of a node without another one.
        address: The node's IPv4 address; by default the sandbox's.
        timeout: The most seconds until the process has begun.

    Raises:
        ConfigError: A range or an address is none.
    """

    name = "services"
    overrides = NodeOverrides()

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        kubeconfig: str = KUBECONFIG,
        service_range: str = SERVICE_RANGE,
        pod_range: str = POD_RANGE,
        gateway: str | None = None,
        node: str = "k3s-sandbox",
        address: str | None = None,
        timeout: float = 15.0,
    ) -> None:
        """Check the values; nothing starts yet."""
        try:
            services, pods = IPv4Network(service_range), IPv4Network(pod_range)
            gateway = str(IPv4Address(gateway) if gateway is not None else pods[1])
            address = str(IPv4Address(address or sandbox.address))
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"layer {self.name}", cause=str(error), remedy=f"e.g. {SERVICE_RANGE}"
            ) from error
        gvisor = sandbox.kind == "gvisor"
        self._sandbox = sandbox
        self._timeout = timeout
        self._process: Process | None = None
        self._settings = {
            "kubeconfig": kubeconfig,
            "status": STATUS,
            "node": node,
            "address": address,
            "gateway": gateway,
            "service": f"{services[1]}/{services.prefixlen}",
            "capacity": GVISOR_BYTES if gvisor else None,
            "pod_range": str(pods) if gvisor else "",
        }

    def __enter__(self) -> Self:
        """Start the process, and wait until it watches; the API server need not be there yet.

        Raises:
            LayerError: The process does not come up; nothing of it is left.
        """
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the process, which removes its rules."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def fault(self) -> str | None:
        """See :meth:`~..base.Restorable.fault`."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else f"the process that keeps the rules {described(code)}"

    def restore(self) -> None:
        """Start a process again; it takes over the rules that the ended one has left."""
        self._start()

    def check(self) -> Health:
        """Return whether the process runs, has seen all Services, and has written its last table."""
        fault = self.fault()
        if self._process is None or fault is not None:
            return Health(ok=False, details={"problems": fault or "the process does not run"})
        said = self._said(self._process)
        if said is None:
            return Health(ok=False, details={"problems": "the process has not begun"})
        details = {
            name: (value if isinstance(value, str) else json.dumps(value))[:_VALUE]
            for name, value in sorted(said.items())
        }
        return Health(ok=said.get("synced") is True and said.get("error") == "", details=details)

    def _start(self) -> None:
        try:
            self._sandbox.files.mkdir(FOLDER, 0o700)
            self._sandbox.files.remove(STATUS)
            argv = command(self._settings)
            process = self._process = self._sandbox.spawn(argv, name="services")
        except (OSError, StartError) as error:
            raise LayerError(f"layer {self.name}", cause=str(error)) from error
        try:
            self._wait(process, Deadline.after(self._timeout))
        except BaseException:
            process.stop()
            raise

    def _wait(self, process: Process, deadline: Deadline) -> None:
        while self._said(process) is None:
            if process.poll() is not None:
                raise self._error(process, f"the process {described(process.poll() or 0)}")
            if deadline.expired:
                raise self._error(process, f"it has not begun after {self._timeout:g} s")
            time.sleep(0.02)

    def _error(self, process: Process, cause: str) -> LayerError:
        try:
            tail = process.log.tail(_TAIL).decode(errors="replace").strip()
        except OSError:
            tail = ""
        return LayerError(
            f"layer {self.name}",
            cause=f"{cause}: {tail}" if tail else cause,
            remedy="install iptables and iproute2 (`k3s-sandbox provision`)",
            log=process.log,
        )

    def _said(self, process: Process) -> dict[str, Any] | None:
        """Return the process' status; None before it has one."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            said = json.loads(self._sandbox.files.read(STATUS, _LIMIT))
            if isinstance(said, dict) and said.get("pid") == process.pid:
                return said
        return None
