"""The namespace between the machine and a sandbox, which decides what passes.

The machine's interface leads to a network namespace of ours, and that namespace leads to the sandbox.
It answers ARP for both sides, so neither side notices it.
It has routes to these two addresses only, and a packet filter of its own.
So the machine's rules, tunables and routes stay as they are, and everything ends with the namespace.

Connections that the machine begins pass, and their answers.
With a port opened, connections of the sandbox to that port of the machine's address pass, too.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.support import bounded

MACHINE, SANDBOX = "m0", "s0"
"""The namespace's two interfaces: towards the machine, and towards the sandbox."""

OWN = "169.254.213.1/32"
"""The namespace's own address, a link-local one (RFC 3927), which its ARP requests need."""

SECONDS = 30.0

REFUSED = "run `k3s-sandbox doctor`, which tells what this machine lacks for a network of a sandbox's own"
"""What helps where the kernel or a program refuses."""


class TooSlow(StartError):
    """A program did not end in time; the kernel may still support the feature."""


class Failed(StartError):
    """A program ended with an exit code that is not 0.

    Attributes:
        code: The exit code.
    """

    code = 0


UNFILTERED = 77
"""The exit code of the script that found the first of :data:`RESTORES` not to work."""

FORWARD = "echo 1 > ipv4/ip_forward"
"""Lets packets pass the namespace; run in /proc/sys/net, when the packet filter is loaded."""

RESTORES = ("iptables-restore", "iptables-legacy-restore")
"""Programs that load a rule set at once; the kernel may have what one of them needs, or neither."""

FILTERED, ROUTED, OPEN = "filtered", "routed", "open"
"""How well a sandbox is isolated: by routes and a packet filter, by routes alone, not at all."""

MEANING = {
    FILTERED: "only connections that the machine begins",
    ROUTED: "the machine's services are reachable from inside, because no packet filter works here",
    OPEN: "what the machine reaches is reachable from inside, because no namespace can be set between",
}
"""What each of them lets pass, in words."""


def rules(gateway: str, address: str, opened: Sequence[int]) -> str:
    """Return the packet filter as iptables-restore(8) reads it.

    Args:
        gateway: The machine's address on the way to the sandbox.
        address: The sandbox's address.
        opened: TCP ports of the machine that the sandbox may reach.
    """
    inward = f"-A FORWARD -i {MACHINE} -o {SANDBOX} -s {gateway}/32 -d {address}/32"
    outward = f"-A FORWARD -i {SANDBOX} -o {MACHINE} -s {address}/32 -d {gateway}/32"
    lines = [
        "*filter",
        ":INPUT DROP [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":FORWARD DROP [0:0]",
        f"{inward} -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT",
        f"{outward} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        *(f"{outward} -p tcp --dport {port} -j ACCEPT" for port in opened),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def setup(gateway: str, address: str, netns: str, opened: Sequence[int]) -> str:
    """Return the shell script that makes the namespace a gateway, run in it, where ``m0`` is already.

    It makes the sandbox's ``eth0`` as well, loads the packet filter, and only then lets packets pass.
    One process does what several would: each costs a start some 10 ms on a busy machine.

    Args:
        gateway: The machine's address.
        address: The sandbox's address.
        netns: The sandbox's network namespace, whose ``eth0`` is made.
        opened: TCP ports of the machine that the sandbox may reach.
    """
    links = [
        f"link add {SANDBOX} type veth peer name eth0 netns {netns}",
        *(f"address add {OWN} dev {link}" for link in (MACHINE, SANDBOX)),
        *(f"link set {link} up" for link in (MACHINE, SANDBOX)),
        f"route add {gateway}/32 dev {MACHINE}",
        f"route add {address}/32 dev {SANDBOX}",
    ]
    return f"""set -e
cd /proc/sys/net
if [ -d ipv6 ]; then
    for name in all default {MACHINE}; do echo 1 > ipv6/conf/$name/disable_ipv6; done
fi
{fed(links, "ip -batch -")}
{fed(sandboxes_end(gateway, address), f"ip -n {netns} -batch -")}
for name in {MACHINE} {SANDBOX}; do
    echo 1 > ipv4/conf/$name/proxy_arp
    echo 1 > ipv4/conf/$name/rp_filter
    echo 0 > ipv4/conf/$name/send_redirects
    echo 0 > ipv4/neigh/$name/proxy_delay
done
{fed(rules(gateway, address, opened).splitlines(), RESTORES[0])} || exit {UNFILTERED}
{FORWARD}
"""


def fed(lines: Sequence[str], command: str) -> str:
    """Return the shell's words that give a command lines as its input."""
    return f"printf '%s\\n' {shlex.quote(chr(10).join(lines))} | {command}"


def sandboxes_end(gateway: str, address: str) -> list[str]:
    """Return the lines of ip(8) that configure ``eth0`` in the sandbox's namespace."""
    return [
        f"address add {address}/30 dev eth0",
        "link set lo up",
        "link set eth0 up",
        f"route add default via {gateway} dev eth0",
    ]


def make(namespace: Path, gateway: str, address: str, netns: str, opened: Sequence[int]) -> str:
    """Make a namespace the gateway of a sandbox, and the sandbox's ``eth0``.

    Args:
        namespace: The namespace's file; ``m0`` is in it.
        gateway: The machine's address.
        address: The sandbox's address.
        netns: The sandbox's network namespace.
        opened: TCP ports of the machine that the sandbox may reach.

    Returns:
        ``filtered``, or ``routed`` where no packet filter works.

    Raises:
        StartError: The kernel refused; the rules so far go with the namespace.
    """
    try:
        run(namespace, ["sh", "-c", setup(gateway, address, netns, opened)])
    except Failed as error:
        if error.code != UNFILTERED:
            raise
    else:
        return FILTERED
    why = load(rules(gateway, address, opened), namespace)
    run(namespace, ["sh", "-c", f"cd /proc/sys/net; {FORWARD}"])
    return FILTERED if why is None else ROUTED


def load(text: str, namespace: Path | None = None) -> str | None:
    """Load a packet filter.

    Args:
        text: What :func:`rules` gives.
        namespace: The network namespace; without one a new namespace, which is thrown away.

    Returns:
        None, or why every program failed.

    Raises:
        TooSlow: One of them did not end in time.
    """
    why = []
    for program in RESTORES:
        try:
            run(namespace, [program], text)
        except TooSlow:
            raise
        except StartError as error:
            why.append(f"{program}: {error.cause}")
        else:
            return None
    return "; ".join(why)


@functools.cache
def guard() -> tuple[str, ...]:
    """Return the words before a command that has to end with this process (prctl(2), PR_SET_PDEATHSIG).

    A program that outlives its SIGKILL would make objects again that the clean-up has just removed.
    """
    program = shutil.which("setpriv")
    return (program, "--pdeathsig", "KILL", "--") if program else ()


def run(namespace: Path | None, argv: list[str], text: str = "") -> None:
    """Run a program of the machine in a network namespace.

    Args:
        namespace: The namespace's file, or None for a new one.
        argv: The program and its arguments.
        text: Its input.

    Raises:
        Failed: It ended with another exit code than 0.
        StartError: It does not exist, or took too long.
    """
    enter = ["unshare", "--net"] if namespace is None else ["nsenter", f"--net={namespace}"]
    try:
        done = bounded.run([*guard(), *enter, *argv], SECONDS, text=text)
    except FileNotFoundError as error:
        raise StartError(
            f"`{enter[0]}` failed", cause=str(error), remedy="install util-linux, which has this program"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise too_slow(argv[0]) from error
    if done.returncode != 0:
        failed = Failed(
            f"`{argv[0]}` failed in {'a new network namespace' if namespace is None else namespace}",
            cause=said(done),
            remedy=REFUSED,
        )
        failed.code = done.returncode
        raise failed


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return why a program has failed: its output, or its exit code."""
    return done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"


def too_slow(command: str) -> TooSlow:
    """Return the error of a program that was killed because it took too long."""
    return TooSlow(
        f"`{command}` failed",
        cause=f"it did not end within {SECONDS:g} s",
        remedy="start again when the machine is less busy, or run fewer sandboxes at once",
    )
