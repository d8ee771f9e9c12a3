"""A namespace of a cluster, with all that a test does in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from pytest_k3s_sandbox.cluster import applying, forwarding, goals, object_wait, podlogs
from pytest_k3s_sandbox.cluster.access import (
    Access,
    ClusterApi,
    Timeout,
    deadline_of,
    existing,
    folders_of,
    short,
)
from pytest_k3s_sandbox.cluster.events import Event, events_of
from pytest_k3s_sandbox.cluster.forwarding import Url
from pytest_k3s_sandbox.cluster.manifests import Manifest
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, on_purpose

if TYPE_CHECKING:
    from pytest_k3s_sandbox.sandbox.base import Completed

__tracebackhide__ = on_purpose

__all__ = ["Event", "Namespace", "Url", "new_name"]

SECONDS = 30.0
"""How long each call may take that is given no other time."""


class Namespace(str):
    """A namespace: its name, as a text, with the operations of a test.

    An object is named as kubectl takes it, ``deployment/greeter`` or ``deploy/greeter``; a name alone is a
    pod's. Every ``timeout`` is in seconds, or a :class:`~pytest_k3s_sandbox.deadline.Deadline`.

    Args:
        name: The namespace's name; it exists already.
        cluster: Where it is.
        folders: Where relative paths of manifests are looked for, before the working directory.
    """

    __slots__ = ("_access", "_folders", "_outside")

    _access: Access
    _folders: tuple[Path, ...]
    _outside: list[str]

    def __new__(cls, name: str, cluster: ClusterApi, folders: Sequence[Path] = ()) -> Self:
        """Return the name with its cluster."""
        made = super().__new__(cls, name)
        made._access = Access(cluster, str(name))
        made._folders = tuple(folders)
        made._outside = []
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Refuse to be copied to another process: it is bound to a cluster of this one.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a Namespace is bound to its cluster; hand its name over: str(namespace)")

    @property
    def cluster(self) -> ClusterApi:
        """The cluster that it is in."""
        return self._access.cluster

    def apply(self, manifest: Manifest, *, timeout: Timeout = SECONDS) -> tuple[str, ...]:
        """Create or change objects, as ``kubectl apply --server-side`` does.

        Objects that are in no namespace, as a ClusterRole, are deleted with this namespace, if they were new.

        Args:
            manifest: The path of a file or folder, a text of YAML or JSON, a dict, or a list of these. A
                relative path is looked for beside the test's file, then in the working directory.
            timeout: How long it may take.

        Returns:
            The objects, as the other methods take them.

        Raises:
            ConfigError: It is not a manifest for this namespace. The message has file, document and line.
            ClusterError: The API server refused it, in its own words.
        """
        done = applying.apply(self._access, manifest, self._folders, deadline_of(timeout))
        self._outside += done.outside
        return done.references

    def delete(
        self,
        what: Manifest,
        *,
        timeout: Timeout = SECONDS,
        grace: float | None = None,
        missing_ok: bool = False,
    ) -> None:
        """Delete objects, and wait until they and the objects that they own are gone, as a deployment's pods.

        Args:
            what: ``KIND/NAME``, or what :meth:`apply` takes.
            timeout: How long it may take.
            grace: Seconds that pods have for their end; their own ``terminationGracePeriodSeconds`` if None.
            missing_ok: Whether to accept that an object does not exist.

        Raises:
            ConfigError: It is neither a reference nor a manifest.
            ClusterError: An object does not exist, or is not gone in time.
        """
        deadline = deadline_of(timeout)
        applying.delete(self._access, what, self._folders, deadline, grace=grace, missing_ok=missing_ok)

    def wait(
        self, what: str, condition: str, *, timeout: Timeout = SECONDS, selector: str | None = None
    ) -> None:
        """Wait until an object meets a condition.

        It ends early, with the reason, when that cannot come any more: a pod has ended, a job has failed, an
        image is missing, a rollout has given up, or a program of the cluster has ended for good. In users'
        tests a program that ends is started again, five times within a minute at most.

        Args:
            what: ``KIND/NAME``; with a selector ``KIND``.
            condition: A condition (``Available``, ``Ready``, ``Ready=False``), a phase (``Running``,
                ``Succeeded``, ``Bound``), ``jsonpath={.status.readyReplicas}=3``, ``jsonpath={...}`` for any
                value, ``created``, or ``deleted``.
            timeout: How long to wait.
            selector: A label selector like ``app=greeter``: all objects that it chooses are waited for, of
                which there has to be one.

        Raises:
            ConfigError: There is no such kind, or no such condition.
            WaitError: It did not come. The message has the object's conditions, its pods, events, and the
                last lines of their logs.
        """
        deadline = deadline_of(timeout)
        of = object_wait.target(self._access, what, selector)
        object_wait.wait(self._access, of, goals.parse(condition, of.kind), deadline)

    @overload
    def logs(
        self,
        what: str,
        *,
        container: str | None = ...,
        tail: int | None = ...,
        previous: bool = ...,
        prefix: bool | None = ...,
        follow: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> str: ...

    @overload
    def logs(
        self,
        what: str,
        *,
        container: str | None = ...,
        tail: int | None = ...,
        prefix: bool | None = ...,
        follow: Literal[True],
        timeout: Timeout = ...,
    ) -> Iterator[str]: ...

    def logs(
        self,
        what: str,
        *,
        container: str | None = None,
        tail: int | None = None,
        previous: bool = False,
        prefix: bool | None = None,
        follow: bool = False,
        timeout: Timeout = SECONDS,
    ) -> str | Iterator[str]:
        """Return the output of all containers of all pods; a container that has not started has none.

        The text is not escaped: a test that prints it prints the container's own bytes.

        Args:
            what: A pod, or what has pods: ``deployment/greeter``, ``job/once``, ``service/greeter``.
            container: Only of containers of this name.
            tail: Only so many of each container's last lines.
            previous: Of the instances before the present ones, which have ended.
            prefix: Whether each line begins with ``[pod/POD/CONTAINER]``; by default if there are several.
            follow: Whether to return the lines one by one, while they are written. It ends when the
                containers end, or with the caller's loop.
            timeout: How long to follow.

        Returns:
            The text; with ``follow`` an iterator over lines without their ends.

        Raises:
            ConfigError: There is no such kind or container.
            ClusterError: The object does not exist, or its logs cannot be read.
            WaitError: With ``follow``, the time has passed.
        """
        reference = self._access.resources.find(what)
        if tail is not None and (isinstance(tail, bool) or tail < 0):
            raise ConfigError(
                f"tail={tail!r}", cause="it is not a number of lines", remedy="write it like tail=10"
            )
        if not follow:
            return podlogs.read(
                self._access, reference, container=container, tail=tail, previous=previous, prefix=prefix
            )
        if previous:
            raise ConfigError(
                "follow=True with previous=True",
                cause="a container that has ended writes nothing more",
                remedy="drop one",
            )
        deadline = deadline_of(timeout)
        return podlogs.follow(
            self._access, reference, deadline, container=container, tail=tail, prefix=prefix
        )

    def exec(
        self,
        what: str,
        *command: str,
        container: str | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: Timeout = SECONDS,
    ) -> Completed:
        """Run a program in a container, to its end.

        Args:
            what: A pod, or what has pods: then it is run in one of them.
            command: The program and its arguments.
            container: The container; by default the pod's first.
            stdin: Its input; empty if None.
            check: Whether an exit code other than 0 is an error.
            timeout: How long it may take.

        Returns:
            Its output and its exit code.

        Raises:
            ConfigError: There is no such kind, or no command.
            ClusterError: It failed, or took too long.
        """
        if not command:
            raise ConfigError(
                f"exec in {what!r}",
                cause="there is no command",
                remedy="write it like exec('pod/x', 'ls', '/')",
            )
        reference = self._access.resources.find(what)
        done = self._access.kubectl(
            "exec",
            *(["--stdin"] if stdin is not None else []),
            *([] if container is None else [f"--container={container}"]),
            "--quiet",
            str(reference),
            "--",
            *command,
            stdin=stdin,
            deadline=deadline_of(timeout),
        )
        if check and done.returncode != 0:
            raise ClusterError(
                f"`{short(' '.join(command), 120)}` in {reference.shown}: exit code {done.returncode}",
                cause=short(done.stderr.strip() or done.stdout.strip(), 1000) or None,
            )
        return done

    def port_forward(
        self, what: str, port: int | str, *, scheme: str = "http", timeout: Timeout = SECONDS
    ) -> AbstractContextManager[Url]:
        """Make a port of a pod reachable at 127.0.0.1 of the machine, for as long as the block lasts.

        Any program of the machine can use it. With a service or a deployment, one of its pods is taken.

        Args:
            what: A pod, or what has pods.
            port: The port of the pod or service; a number or a name.
            scheme: The URL's scheme.
            timeout: How long to wait until a pod runs.

        Returns:
            A context manager that gives the URL, like ``http://127.0.0.1:40123``. It has ``host`` and
            ``port`` as attributes.

        Raises:
            ConfigError: There is no such kind, or the port is not valid.
            ClusterError: The object does not exist, has no such port, or none of its pods runs.
        """
        forwarding.check_port(port)
        reference = self._access.resources.find(what)
        return forwarding.forward(self._access, reference, port, deadline_of(timeout), scheme)

    def events(self, what: str | None = None) -> list[Event]:
        """Return the events of the namespace, the latest one last.

        Args:
            what: Only events about this object.

        Raises:
            ConfigError: There is no such kind.
            ApiUnavailable: The API server does not answer.
        """
        query = {}
        if what is not None:
            found = self._access.resources.find(what)
            query = {
                "fieldSelector": f"involvedObject.name={found.name},involvedObject.kind={found.resource.kind}"
            }
        return events_of(self._access.items(f"/api/v1/namespaces/{self}/events", **query))

    def load_image(self, tar: str | Path, *, timeout: Timeout = 60.0) -> tuple[str, ...]:
        """Load an image from an archive into the node; it stays there when the namespace has gone.

        Args:
            tar: The archive, as ``docker save`` makes it. A relative path is looked for as for :meth:`apply`.
            timeout: How long it may take.

        Returns:
            The names by which a pod can use it.

        Raises:
            ConfigError: It is not an archive of an image.
            ClusterError: containerd refused it.
        """
        file = existing(tar, folders_of(*self._folders)) or Path(tar)
        return self.cluster.load_image(file, deadline_of(timeout).remaining())

    def leave(self) -> None:
        """Delete the objects outside of namespaces that were applied from here.

        :meth:`.Cluster.namespace` calls it before it deletes the namespace.

        Raises:
            ClusterError: The API server refused it.
        """
        names, self._outside = list(dict.fromkeys(reversed(self._outside))), []
        applying.leave(self._access, names)


def new_name() -> str:
    """Return a name for a new namespace."""
    return f"test-{os.urandom(4).hex()}"
