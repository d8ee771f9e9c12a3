"""The OCI runtime that containerd's shim calls: a shell script around an unmodified runc or crun.

The shim starts its runtime for each step of a container's life (create, start, state, kill, delete, ...). For
commands other than ``create`` and ``run`` the script executes the runtime at once, without a fork or Python.
In gVisor, crun has no script: starting a program costs 10 ms there, and the interceptor changes the
specification when crun starts (the rule ``substitute``).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from pytest_k3s_sandbox.layers.workarounds import oci_spec
from pytest_k3s_sandbox.layers.workarounds.oci_spec import adapt

__all__ = ["CRUN_WRAPPER", "WRAPPER", "adapt", "script", "write_crun_wrapper", "write_wrapper"]

WRAPPER = "k3s-sandbox-runc"
"""The name of the script for runc."""

CRUN_WRAPPER = "k3s-sandbox-crun"
"""The name of the script for crun."""

_ADAPTER = "oci_spec.py"

# The options with a value are those of runc 1.3 (`runc --help`, `runc create --help`, `runc run --help`);
# Go's flag package takes one dash or two, and the value behind "=" as well. crun has the same for a shim.
_SCRIPT = """\
#!/bin/sh
# Written by k3s-sandbox: an OCI runtime, with containers' specifications adapted to it.
command= bundle=. log= option=
for word do
  if [ -n "$option" ]; then
    case $option in
      -b | -bundle | --bundle) bundle=$word ;;
      -log | --log) log=$word ;;
    esac
    option=
    continue
  fi
  case $word in
    -b=* | -bundle=* | --bundle=*) bundle=${{word#*=}} ;;
    -log=* | --log=*) log=${{word#*=}} ;;
    -root | --root | -log | --log | -log-format | --log-format | -rootless | --rootless | \\
    -b | -bundle | --bundle | -console-socket | --console-socket | -pidfd-socket | --pidfd-socket | \\
    -pid-file | --pid-file | -preserve-fds | --preserve-fds) option=$word ;;
    -*) ;;
    *)
      if [ -z "$command" ]; then
        command=$word
        case $command in
          create | run) ;;
          *) exec {runtime} "$@" ;;
        esac
      fi
      ;;
  esac
done
[ -z "$command" ] && exec {runtime} "$@"
{adapt}
exec {runtime} "$@"
"""

# Most need nothing, and grep starts sooner than Python; what Go has not written is left to the latter.
_ADAPT_RUNC = """\
grep -q -e '"seccomp"' -e '{{"type":"cgroup"' -e '[:,] ' "$bundle/config.json" 2>/dev/null
[ $? -eq 1 ] && exec {runtime} "$@"
{python} -IS {adapter} "$bundle/config.json" "$log" || exit 1"""

# crun before 1.14 refuses version 1.2 of the Runtime Specification, which containerd writes.
_ADAPT_CRUN = """\
sed -i 's/"ociVersion":"1[.0-9]*"/"ociVersion":"1.0.2"/' "$bundle/config.json" 2>/dev/null"""


def write_wrapper(folder: Path, inside: str, runc: str, *, python: str = sys.executable) -> str:
    """Write the script for runc, which containerd's configuration names as ``BinaryName``.

    Args:
        folder: The folder to write to, on the machine; created if missing.
        inside: The same folder's path inside the sandbox.
        runc: The path of runc inside.
        python: The path inside of the Python that adapts specifications; 3.11 or later.

    Returns:
        The script's path inside.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(oci_spec.__file__), folder / _ADAPTER)
    return _put(folder, inside, WRAPPER, script(runc=runc, python=python, adapter=f"{inside}/{_ADAPTER}"))


def write_crun_wrapper(folder: Path, inside: str, crun: str) -> str:
    """Write the script for crun on plain Linux; as :func:`write_wrapper`."""
    folder.mkdir(parents=True, exist_ok=True)
    return _put(folder, inside, CRUN_WRAPPER, _SCRIPT.format(runtime=shlex.quote(crun), adapt=_ADAPT_CRUN))


def _put(folder: Path, inside: str, name: str, text: str) -> str:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return f"{inside}/{name}"


def script(*, runc: str, python: str, adapter: str) -> str:
    """Return the text of the script for runc.

    Args:
        runc: The path of runc inside.
        python: The path of Python inside.
        adapter: The path inside of the program that adapts a specification.

    Returns:
        A script for any POSIX shell.
    """
    runtime = shlex.quote(runc)
    adapt = _ADAPT_RUNC.format(runtime=runtime, python=shlex.quote(python), adapter=shlex.quote(adapter))
    return _SCRIPT.format(runtime=runtime, adapt=adapt)
