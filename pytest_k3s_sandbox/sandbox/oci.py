"""The OCI bundle of a gVisor sandbox: a pure function from a layout to config.json.

Fields: OCI runtime specification 1.2, config.md and config-linux.md.
"""

from __future__ import annotations

from typing import Any

from pytest_k3s_sandbox.sandbox.layout import SHELL_PATH, Layout

# capabilities(7), all of them: gVisor's own kernel grants them, the machine's does not.
CAPABILITIES = """
AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK
IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST
NET_RAW SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT
SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
"""

SETS = ("bounding", "effective", "inheritable", "permitted")


def config(layout: Layout, *, argv: list[str], hostname: str, netns: str) -> dict[str, Any]:
    """Return the runtime configuration of a sandbox.

    Args:
        layout: The file system; each bind becomes a mount served over 9p.
        argv: The first process.
        hostname: The name that ``uname -n`` gives.
        netns: The path of the network namespace whose interfaces the sandbox takes over.

    Returns:
        The content of ``config.json``.
    """
    capabilities = [f"CAP_{name}" for name in CAPABILITIES.split()]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": [f"PATH={SHELL_PATH}", "HOME=/root", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"],
            "cwd": "/",
            "capabilities": dict.fromkeys(SETS, capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
        },
        "root": {"path": str(layout.rootfs), "readonly": not layout.one_root},
        "hostname": hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            *(
                {
                    "destination": bind.target,
                    "type": "bind",
                    "source": str(bind.source),
                    "options": ["rbind", "rw" if bind.writable else "ro"],
                }
                for bind in layout.binds
            ),
            *({"destination": path, "type": "tmpfs", "source": "tmpfs"} for path in layout.tmpfs),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": netns},
            ],
        },
    }
