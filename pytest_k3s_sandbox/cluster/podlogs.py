"""The output of pods' containers: read to its present end, or followed."""

from __future__ import annotations

import contextlib
import selectors
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, cast
from urllib.parse import urlencode

from pytest_k3s_sandbox.cluster.access import Access, short
from pytest_k3s_sandbox.cluster.goals import container_statuses, selector_of
from pytest_k3s_sandbox.cluster.reading import ApiUnavailable
from pytest_k3s_sandbox.cluster.resources import Reference
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, WaitError, on_purpose, suggestion

__tracebackhide__ = on_purpose

MOST_BYTES = 16 << 20
"""Of one container; the kubelet rotates logs at 10 MiB."""

LINE_BYTES = 1 << 16
"""Of one line that is followed; a longer one comes in pieces."""

LOOK_SECONDS = 0.5
STREAMS = 64
"""How many containers kubectl follows at once."""

Item = Mapping[str, Any]


def containers(pod: Item) -> list[str]:
    """Return the names of a pod's containers, in the order in which they start.

    Args:
        pod: The pod.
    """
    spec = pod.get("spec") or {}
    return [
        each["name"]
        for field in ("initContainers", "containers", "ephemeralContainers")
        for each in spec.get(field) or []
    ]


def started(pod: Item, name: str, *, before: bool = False) -> bool:
    """Tell whether a container of a pod has written, or can have.

    Args:
        pod: The pod.
        name: The container.
        before: Whether this is about its instance before the present one.
    """
    status = pod.get("status") or {}
    for each in [*container_statuses(status), *(status.get("ephemeralContainerStatuses") or [])]:
        if each.get("name") == name:
            last = bool((each.get("lastState") or {}).get("terminated"))
            state = each.get("state") or {}
            return last if before else last or "running" in state or "terminated" in state
    return False


def chosen(pods: Sequence[Item], what: str, container: str | None) -> list[tuple[str, str]]:
    """Return the pods' names with their containers' names.

    Args:
        pods: The pods.
        what: Whose they are, for the message.
        container: The only container; None for all.

    Raises:
        ConfigError: No pod has a container of that name.
    """
    every = [(pod["metadata"]["name"], name) for pod in pods for name in containers(pod)]
    found = [pair for pair in every if container in {None, pair[1]}]
    if every and not found:
        names = list(dict.fromkeys(name for _, name in every))
        raise ConfigError(
            f"the container {container!r} of {what}",
            cause=f"its containers are {', '.join(names)}",
            remedy=suggestion(str(container), names),
        )
    return found


def read(
    access: Access,
    reference: Reference,
    *,
    container: str | None = None,
    tail: int | None = None,
    previous: bool = False,
    prefix: bool | None = None,
) -> str:
    """Return the output so far; see :meth:`.Namespace.logs`."""
    pods = access.pods(access.there(reference))
    pairs = chosen(pods, reference.shown, container)
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    marked = len(pairs) > 1 if prefix is None else prefix
    parts = []
    for pod, name in pairs:
        if not started(by_name[pod], name, before=previous):
            continue
        text = of_container(access, pod, name, tail=tail, previous=previous)
        if marked:
            text = "".join(f"[pod/{pod}/{name}] {line}" for line in text.splitlines(keepends=True))
        if text and not text.endswith("\n") and len(pairs) > 1:
            text += "\n"
        parts.append(text)
    return "".join(parts)


def of_container(
    access: Access, pod: str, container: str, *, tail: int | None = None, previous: bool = False
) -> str:
    """Return the output of one container.

    Args:
        access: The namespace.
        pod: The pod's name.
        container: The container's name.
        tail: How many of the last lines; all if None.
        previous: Of the instance before the present one.

    Raises:
        ClusterError: The kubelet does not give it.
    """
    query = {"container": container, "limitBytes": str(MOST_BYTES)}
    if tail is not None:
        query["tailLines"] = str(tail)
    if previous:
        query["previous"] = "true"
    path = f"/api/v1/namespaces/{access.namespace}/pods/{pod}/log?{urlencode(query)}"
    try:
        return access.reader.text(path) or ""
    except ApiUnavailable as error:
        raise ClusterError(
            f"the log of container {container} of pod {pod}",
            cause=short(error.cause),
            log=access.cluster.logs,
        ) from error


def tails(access: Access, pods: Sequence[Item], lines: int, most: int) -> list[str]:
    """Return the last lines of pods' containers, each escaped. Logs that cannot be read are left out.

    Args:
        access: The namespace.
        pods: The pods.
        lines: How many of each container.
        most: The number of containers; ended ones come first.
    """
    pairs = [(pod, name) for pod in pods for name in containers(pod) if started(pod, name)]
    said = []
    for pod, name in pairs[-most:]:
        own = pod["metadata"]["name"]
        text = ""
        with contextlib.suppress(ClusterError):
            text = of_container(access, own, name, tail=lines)
        if not text and started(pod, name, before=True):
            with contextlib.suppress(ClusterError):
                text = of_container(access, own, name, tail=lines, previous=True)
        said += [
            f"[pod/{short(own, 80)}/{short(name, 60)}] {short(line)}" for line in text.splitlines()[-lines:]
        ]
    return said


def follow(
    access: Access,
    reference: Reference,
    deadline: Deadline,
    *,
    container: str | None = None,
    tail: int | None = None,
    prefix: bool | None = None,
) -> Iterator[str]:
    """Yield the output line by line while it is written; see :meth:`.Namespace.logs`."""
    pods: list[dict[str, Any]] = []

    def can_be_read() -> bool:
        pods[:] = access.pods(access.there(reference))
        pairs = chosen(pods, reference.shown, container)
        wanted = {
            (pod["metadata"]["name"], each["name"]) for pod in pods for each in pod["spec"]["containers"]
        }
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        return bool(pairs) and all(
            started(by_name[pod], name) or by_name[pod]["status"].get("phase") == "Failed"
            for pod, name in pairs
            if container is not None or (pod, name) in wanted
        )

    access.cluster.wait(can_be_read, f"{reference.shown} to write a log", deadline)
    pairs = chosen(pods, reference.shown, container)
    item = access.there(reference)
    whose = [f"pod/{item['metadata']['name']}"] if item.get("kind") == "Pod" else [f"-l{selector_of(item)}"]
    marked = len(pairs) > 1 if prefix is None else prefix
    argv, environment = access.cluster.kubectl_command(
        f"--namespace={access.namespace}",
        "logs",
        "--follow",
        f"--tail={-1 if tail is None else tail}",
        f"--max-log-requests={STREAMS}",
        *([f"--container={container}"] if container is not None else ["--all-containers"]),
        *(["--prefix"] if marked else []),
        *whose,
    )
    return _lines(argv, environment, reference.shown, deadline)


def _lines(argv: list[str], environment: dict[str, str], what: str, deadline: Deadline) -> Iterator[str]:
    """Yield the lines that a program writes until it ends; it is killed when the caller wants no more."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        lines = cast("IO[bytes]", process.stdout)  # a pipe
        try:
            for line in _split(lines, what, deadline):
                yield line.decode("utf-8", "replace")
            if process.wait() != 0:
                errors.seek(0)
                raise ClusterError(
                    f"following the log of {what}", cause=short(errors.read(4096).decode(errors="replace"))
                )
        finally:
            process.kill()
            process.wait()
            lines.close()


def _split(stream: IO[bytes], what: str, deadline: Deadline) -> Iterator[bytes]:
    """Yield the lines of a pipe without their ends."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if deadline.expired:
                raise WaitError(
                    f"timed out following the log of {what}",
                    cause="its containers still run, and the caller still reads",
                    remedy="end the loop at the line that is wanted, or give a longer timeout",
                )
            if not selector.select(min(LOOK_SECONDS, deadline.remaining())):
                continue
            piece = stream.read(LINE_BYTES)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
            if len(rest) >= LINE_BYTES:
                yield rest
                rest = b""
    if rest:
        yield rest
