"""Classifies the error lines of a node's logs; all functions are pure.

Two formats are read: klog's ``Lmmdd hh:mm:ss.uuuuuu threadid file:line] msg`` (k8s.io/klog/v2,
``internal/buffer``), which the Kubernetes parts write, and logfmt
(``time="..." level=error msg="..."``), which containerd, its shim and runc write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class LineKind(StrEnum):
    """The subject of an error line, in the order of precedence."""

    YOUNG = "young-container"
    CADVISOR = "cadvisor"
    KMSG = "kmsg"
    SYSCTL = "sysctl"
    EINTR = "eintr"
    CGROUP = "cgroup"
    MOUNT = "mount"
    CNI = "cni"
    RUNTIME = "runtime"
    API = "api"
    OTHER = "other"


@dataclass(frozen=True)
class LogError:
    """An error line, taken apart.

    Attributes:
        kind: The subject of the error.
        severity: ``warning``, ``error`` or ``fatal``.
        message: The line without its header.
        errno: The name of the error number that it ends with, like ``EINTR``.
    """

    kind: LineKind
    severity: str
    message: str
    errno: str | None = None


_KLOG = re.compile(
    r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<file>[\w.-]+\.go):\d+\] ?(?P<message>.*)",
    re.DOTALL,
)
_LOGFMT_LEVEL = re.compile(r'\blevel="?(?P<level>[a-z]+)"?(?= |$)')
_SEVERITIES = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}
_LEVELS = {"warn": "warning", "warning": "warning", "error": "error", "fatal": "fatal", "panic": "fatal"}

# Base names of the sources of cAdvisor v0.52 that log; klog prints no folder. No source of the kubelet's own
# shares those of the first set. It shares the second, but its lines are structured: their message is quoted.
_CADVISOR_ONLY = frozenset(
    {
        "container.go",
        "factory.go",
        "fs.go",
        "fsHandler.go",
        "info.go",
        "machine.go",
        "oomparser.go",
        "prometheus.go",
        "sysfs.go",
        "sysinfo.go",
    }
)
_CADVISOR_SHARED = frozenset({"handler.go", "helpers.go", "manager.go", "watcher.go"})

# Words of cAdvisor and of the kubelet's use of it, wherever they are wrapped into another message.
_CADVISOR_WORDS = re.compile(
    r"cadvisor|"
    r"Failed to update stats for container|"
    r"failed to get rootfs info|"
    r"unable to find data in memory cache|"
    r"no plugin found for filesystem|"
    r"cannot find filesystem info for device|"
    r"failed to get mounted cgroup|"
    r"failed to find cgroup mounts|"
    r"Failed to get the info of the filesystem with mountpoint|"
    r"failed to get HasDedicatedImageFs|"
    r"failed to get imageFs info|"
    r"invalid capacity 0 on image filesystem",
    re.IGNORECASE,
)
# The kubelet's eviction manager asks for statistics every 10 s, on any machine. If a container has started
# since cAdvisor looked last, this line follows. It tells of a failure only if it is repeated.
_YOUNG = re.compile(
    r'"Partial failure issuing cadvisor\.ContainerInfoV2" err="partial failures: '
    r'(\[\\"/\S*[0-9a-f]{64}\\": RecentStats: unable to find data in memory cache\](, )?)+"'
)
# cAdvisor logs these as warnings, though it lost a measurement or the source of one.
_CADVISOR_LOSSES = re.compile(
    r"Failed to update stats for container|Failed to process watch event|Error while processing event"
)

_WORDS: tuple[tuple[LineKind, re.Pattern[str]], ...] = (
    (LineKind.KMSG, re.compile(r"/dev/kmsg")),
    (
        LineKind.SYSCTL,
        re.compile(r"/proc/sys/|kernel flag|sysctl", re.IGNORECASE),
    ),
    (LineKind.EINTR, re.compile(r"interrupted system call")),
    (LineKind.CGROUP, re.compile(r"cgroup", re.IGNORECASE)),
    (
        LineKind.MOUNT,
        re.compile(
            r"device or resource busy|target is busy|UnmountVolume|MountVolume|failed to (?:un)?mount|umount",
            re.IGNORECASE,
        ),
    ),
    (
        LineKind.CNI,
        re.compile(r"\bcni\b|network not ready|NetworkPluginNotReady|network for sandbox", re.IGNORECASE),
    ),
    (
        LineKind.RUNTIME,
        re.compile(
            r"PodSandbox|CreateContainer|StartContainer|runtime service|containerd|"
            r"OCI runtime|\brunc\b|\bshim\b",
        ),
    ),
    (
        LineKind.API,
        re.compile(
            r"dial tcp|connection refused|Unable to register node|Failed to watch|ensure lease|"
            r"Client\.Timeout|etcdserver|error getting node|node \"[^\"]*\" not found|is forbidden"
        ),
    ),
)

_ERRNO = {
    "interrupted system call": "EINTR",
    "device or resource busy": "EBUSY",
    "target is busy": "EBUSY",
    "input/output error": "EIO",
    "function not implemented": "ENOSYS",
    "no such file or directory": "ENOENT",
    "no such device": "ENODEV",
    "operation not permitted": "EPERM",
    "permission denied": "EACCES",
    "operation not supported": "EOPNOTSUPP",
    "invalid argument": "EINVAL",
    "file exists": "EEXIST",
    "no space left on device": "ENOSPC",
    "connection refused": "ECONNREFUSED",
}


def classify(line: str) -> LogError | None:
    """Classify a line of a log.

    Args:
        line: A line of a component's log, with or without its newline.

    Returns:
        The error. None for a line of lower severity, an empty line, and a line in neither format. A warning
        counts as an error if cAdvisor lost a measurement or a signal interrupted a call.
    """
    text = line.strip()
    klog = _KLOG.match(text)
    if klog is not None:
        return _judge(_SEVERITIES[klog["severity"]], klog["file"], klog["message"])
    level = _LOGFMT_LEVEL.search(text)
    if level is not None:
        return _judge(_LEVELS.get(level["level"], "info"), None, text)
    # A program writes these before its logging works, and the Go runtime when it ends the program.
    if text.startswith(("Error: ", "panic: ", "fatal error: ")):
        return _judge("fatal", None, text)
    return None


def kind_of(message: str, file: str | None = None) -> LineKind:
    """Return the kind of a message.

    Args:
        message: The line without its header.
        file: The base name of the source file that klog printed.
    """
    if _YOUNG.fullmatch(message):
        return LineKind.YOUNG
    structured = message.startswith('"')
    from_cadvisor = file in _CADVISOR_ONLY or (file in _CADVISOR_SHARED and not structured)
    if from_cadvisor or _CADVISOR_WORDS.search(message):
        return LineKind.CADVISOR
    return next((kind for kind, words in _WORDS if words.search(message)), LineKind.OTHER)


def errno_of(message: str) -> str | None:
    """Return the name of the error number whose text stands last in a message."""
    found = [(message.rfind(words), name) for words, name in _ERRNO.items() if words in message]
    return max(found)[1] if found else None


def _judge(severity: str, file: str | None, message: str) -> LogError | None:
    errno = errno_of(message)
    lost = _CADVISOR_LOSSES.search(message) is not None or errno == "EINTR"
    if severity == "info" or (severity == "warning" and not lost):
        return None
    return LogError(kind_of(message, file), severity, message, errno)
