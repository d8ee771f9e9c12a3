"""A cluster in a sandbox, as its users see it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.cluster import direct
from pytest_k3s_sandbox.cluster.answers import answered, found, patient
from pytest_k3s_sandbox.cluster.base import ImageLoader, Parts
from pytest_k3s_sandbox.cluster.certificates import ADMIN, pki
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.loading import load_archive
from pytest_k3s_sandbox.cluster.logs import copy_logs, log_of
from pytest_k3s_sandbox.cluster.namespace import Namespace, new_name
from pytest_k3s_sandbox.cluster.process_wait import lost_by, until
from pytest_k3s_sandbox.cluster.reading import READ_SECONDS, ApiReader, Condition, conditions, is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.sandbox.base import Completed, Process, Reachable
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.support import bounded, forks

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, CoreV1Api


class Cluster:
    """Kubernetes, as its users see it: the API, kubectl, waiting, logs, images and namespaces.

    Starting and ending it is the part of :class:`~pytest_k3s_sandbox.cluster.runner.ClusterRunner`, which
    may belong to another process.

    Attributes:
        sandbox: The sandbox that it runs in.
        settings: The node's name, the addresses and ports, the version.
        node: The worker node.

    Args:
        parts: The running programs of Kubernetes.
        sandbox: The sandbox that they run in.
        settings: The node's name, ports and so on.
        images: Returns the loader of images into the node.
        kubectl: The kubectl program on the machine.
        records: The run's folder, which gets copies of the logs when a wait fails.
    """

    def __init__(
        self,
        parts: Parts,
        sandbox: Reachable,
        settings: ClusterSettings,
        images: Callable[[], ImageLoader],
        kubectl: Path,
        records: Path | None = None,
    ) -> None:
        """Keep the parts; nothing is asked yet."""
        self.sandbox = sandbox
        self.settings = settings
        self.node = Node(self)
        self._parts = parts
        self._images = images
        self._kubectl = kubectl
        self._records = records
        forks.watch(self)

    def forked(self) -> None:
        """Give a forked process connections of its own."""
        if "client" in self.__dict__:  # as ApiClient makes it
            self.client.rest_client = type(self.client.rest_client)(self.client.configuration)

    @property
    def processes(self) -> Mapping[str, Process]:
        """The processes of Kubernetes, by name."""
        return self._parts.processes

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, a file on the machine."""
        return pki(self.sandbox.control) / ADMIN

    @property
    def logs(self) -> InsidePath:
        """The folder on the machine with every process' log; see :class:`~.sandbox.inside.InsidePath`."""
        return self.sandbox.logs

    def log(self, component: str) -> InsidePath:
        """Return where a component logs, a file on the machine that may not exist yet."""
        return log_of(self.sandbox, component)

    def reader(self, seconds: float = READ_SECONDS) -> ApiReader:
        """Return a new reader of the API, which does without the ``kubernetes`` package.

        Args:
            seconds: How long each step of an answer may take.
        """
        return ApiReader(self.settings, pki(self.sandbox.control), seconds)

    @functools.cached_property
    def client(self) -> ApiClient:
        """A client of the ``kubernetes`` package, as the administrator."""
        return direct.client(self.kubeconfig)

    @functools.cached_property
    def core(self) -> CoreV1Api:
        """The core API of :attr:`client`."""
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self.client)

    def kubectl_command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """Return the command of :meth:`kubectl`, for callers that run it beside other work.

        Args:
            words: kubectl's arguments.

        Returns:
            The program with its arguments, and its whole environment.
        """
        folder = self.sandbox.workdir / "kubectl"
        argv = [str(self._kubectl), f"--kubeconfig={self.kubeconfig}", *words]
        return argv, direct.kubectl_environment(os.environ, self.settings.address, folder)

    def kubectl(
        self, *words: str, check: bool = True, timeout: float = 30.0, stdin: str | None = None
    ) -> Completed:
        """Run kubectl on the machine, as the administrator.

        The user's settings do not change it: neither ``~/.kube`` nor variables that begin with KUBE. It
        reaches the API server directly, and other hosts by the proxy that the environment names.

        Args:
            words: Its arguments.
            check: Whether an exit code other than 0 is an error.
            timeout: Seconds after which it is killed.
            stdin: Its input, as for ``apply -f -``; empty if None.

        Raises:
            ClusterError: It failed, or took too long.
        """
        argv, environment = self.kubectl_command(*words)
        try:
            ended = bounded.run(argv, timeout, env=environment, text=stdin)
        except subprocess.TimeoutExpired as error:
            raise ClusterError(
                f"`kubectl {' '.join(words)}` took longer than {timeout:g} s", log=self.logs
            ) from error
        done = Completed.of(argv, ended.returncode, ended.stdout, ended.stderr)
        if check and done.returncode != 0:
            raise ClusterError(
                f"`kubectl {' '.join(words)}` failed with exit code {done.returncode}",
                cause=done.stderr.strip() or None,
                log=self.logs,
            )
        return done

    @property
    def lost(self) -> str | None:
        """Why nothing can be asked in its sandbox any more; None as long as it can."""
        return next(
            (why for each in list(self.processes.values()) if (why := lost_by(each)) is not None), None
        )

    def wait(
        self,
        condition: Callable[[], bool],
        what: str,
        deadline: Deadline,
        hint: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Wait for a condition while each process lives or is started again.

        See :func:`~.process_wait.until`.

        An API server that does not answer, or is overloaded, is waited for, too.
        """

        def seen() -> str | None:
            return "; ".join(filter(None, (answered(hint)(), self._parts.trouble()))) or None

        try:
            until(
                patient(condition),
                what=what,
                deadline=deadline,
                alive=lambda: self._parts.unsupervised,
                restarts=self._parts.restarts,
                hint=seen,
            )
        except ClusterError as error:
            if self._records is not None:  # the sandbox's own logs go with it; these stay
                copy_logs(self.sandbox, self._records)
                error.log = self._records / "logs"
            raise

    def wait_usable(self, namespace: str, deadline: Deadline) -> None:
        """Wait until pods can be created in a namespace: its service account and CA exist.

        Raises:
            ClusterError: The deadline passed.
        """

        def there() -> bool:
            account = found(lambda: self.core.read_namespaced_service_account("default", namespace))
            bundle = found(lambda: self.core.read_namespaced_config_map("kube-root-ca.crt", namespace))
            return account is not None and bundle is not None

        self.wait(there, f"the default service account of namespace {namespace}", deadline)

    def load_image(self, tar: Path, seconds: float = 60.0) -> tuple[str, ...]:
        """Load an image from an archive on the machine into the node; see :func:`~.loading.load_archive`.

        Args:
            tar: The archive.
            seconds: How long it may take.

        Returns:
            The names by which a pod can use it.
        """
        return load_archive(self._images(), self.sandbox, tar, Deadline.after(seconds))

    @contextlib.contextmanager
    def namespace(
        self,
        name: str | None = None,
        seconds: float = 60.0,
        spare: Callable[[], bool] = lambda: False,
        *,
        folders: Sequence[Path] = (),
    ) -> Iterator[Namespace]:
        """Create a namespace, and delete it at the end with everything in it.

        The end waits until the pods are gone. The namespace itself goes some seconds later, because the
        namespace controller pauses for five seconds on purpose. An earlier namespace of the same name that
        is being deleted is waited for.

        Args:
            name: The namespace's name, which must be free; None for a new name.
            seconds: The time limit in seconds, once for the start and once for the end.
            spare: Called at the end. If it returns True, the namespace stays.
            folders: Where relative paths of manifests are looked for, before the working directory.

        Raises:
            ClusterError: It did not become usable, or its pods did not go away.
        """
        name = new_name() if name is None else name
        owner = forks.Owner()
        deadline = Deadline.after(seconds)
        self.wait(lambda: not self._going(name), f"an earlier namespace {name} to be gone", deadline)
        self.core.create_namespace({"metadata": {"name": name}})
        made = Namespace(name, self, folders)
        try:
            self.wait_usable(name, deadline)
            yield made
        finally:
            if owner.mine and not spare():
                try:
                    made.leave()
                finally:
                    self._delete_namespace(name, Deadline.after(seconds))

    def _delete_namespace(self, name: str, deadline: Deadline) -> None:
        """Delete a namespace, and wait until its pods are gone."""
        self.core.delete_namespace(name)  # first, so that no controller makes its pods again
        # A shell as process 1 ignores SIGTERM. Without this a test's end would take 30 s.
        self.core.delete_collection_namespaced_pod(name, grace_period_seconds=1)
        self.wait(
            lambda: not self.core.list_namespaced_pod(name).items,
            f"the pods of namespace {name} to be gone",
            deadline,
        )

    def _going(self, name: str) -> bool:
        namespace = found(lambda: self.core.read_namespace(name))
        return namespace is not None and namespace.metadata.deletion_timestamp is not None


class Node:
    """The worker node of a cluster.

    Args:
        cluster: The cluster that it belongs to.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Keep the cluster."""
        self._cluster = cluster

    @property
    def name(self) -> str:
        """The name under which the kubelet registers."""
        return self._cluster.settings.node

    def conditions(self) -> dict[str, Condition]:
        """Return the node's conditions by type; empty while it is not registered.

        Raises:
            ApiUnavailable: The API server did not give an answer.
        """
        return conditions(self._api.read(f"/api/v1/nodes/{self.name}") or {})

    @functools.cached_property
    def _api(self) -> ApiReader:
        return self._cluster.reader()

    @property
    def ready(self) -> bool:
        """Whether the condition Ready is True now; raises ApiUnavailable as :meth:`conditions` does."""
        return is_ready(self.conditions().values())

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until the node is Ready.

        Raises:
            ClusterError: It is not after ``seconds``, or a process ended. The message has the known state.
        """

        def hint() -> str | None:
            condition = self.conditions().get("Ready")
            return None if condition is None else f"{condition.reason}: {condition.message}"

        self._cluster.wait(
            lambda: self.ready, f"node {self.name} to become Ready", Deadline.after(seconds), hint
        )

    def stats_summary(self) -> dict[str, Any]:
        """Return the kubelet's /stats/summary, which is made of cAdvisor's statistics."""
        path = f"/api/v1/nodes/{self.name}/proxy/stats/summary"
        summary: dict[str, Any] = json.loads(self._cluster.kubectl("get", "--raw", path).stdout)
        return summary

    @property
    def log(self) -> InsidePath:
        """The kubelet's log, a file on the machine."""
        return self._cluster.log("kubelet")
