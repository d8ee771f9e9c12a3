"""The OCI runtime that containerd's shim calls in gVisor: a shell script around an unmodified runc.

The shim starts its runtime for each step of a container's life (create, start, state, kill, delete, ...). For
commands other than ``create`` and ``run`` the script executes runc at once, without a fork or Python.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from pytest_k3s_sandbox.layers.workarounds import oci_spec
from pytest_k3s_sandbox.layers.workarounds.oci_spec import adapt

__all__ = ["WRAPPER", "adapt", "write_wrapper"]

WRAPPER = "k3s-sandbox-runc"
"""The script's name."""

_ADAPTER = "oci_spec.py"

# The options with a value are those of runc 1.3 (`runc --help`, `runc create --help`, `runc run --help`);
# Go's flag package takes one dash or two, and the value behind "=" as well.
_SCRIPT = """\
#!/bin/sh
# Written by k3s-sandbox: runc, with containers' specifications adapted to gVisor.
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
          *) exec {runc} "$@" ;;
        esac
      fi
      ;;
  esac
done
if [ -n "$command" ]; then
  # Most need nothing, and grep starts sooner than Python; what Go has not written is left to the latter.
  grep -q -e '"seccomp"' -e '{{"type":"cgroup"' -e '[:,] ' "$bundle/config.json" 2>/dev/null
  [ $? -eq 1 ] && exec {runc} "$@"
  {python} -IS {adapter} "$bundle/config.json" "$log" || exit 1
fi
exec {runc} "$@"
"""


def write_wrapper(folder: Path, inside: str, runc: str, *, python: str = sys.executable) -> str:
    """Write the runtime, which containerd's configuration names as ``BinaryName``.

    Args:
        folder: The folder to write to, on the machine; created if missing.
        inside: The same folder's path inside the sandbox.
        runc: The path of runc inside.
        python: The path inside of the Python that adapts specifications; 3.11 or later.

    Returns:
        The runtime's path inside.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(oci_spec.__file__), folder / _ADAPTER)
    wrapper = folder / WRAPPER
    wrapper.write_text(script(runc=runc, python=python, adapter=f"{inside}/{_ADAPTER}"))
    wrapper.chmod(0o755)
    return f"{inside}/{WRAPPER}"


def script(*, runc: str, python: str, adapter: str) -> str:
    """Return the wrapper's text.

    Args:
        runc: The path of runc inside.
        python: The path of Python inside.
        adapter: The path inside of the program that adapts a specification.

    Returns:
        A script for any POSIX shell.
    """
    return _SCRIPT.format(runc=shlex.quote(runc), python=shlex.quote(python), adapter=shlex.quote(adapter))
