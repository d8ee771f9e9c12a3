"""Completes the cgroup tables, /proc/cgroups and /proc/PID/cgroup, with hierarchies of a FUSE cgroupfs.

Formats: cgroups(7), "/proc files".
"""

from __future__ import annotations


def completed(table: bytes, served: bytes, *, whole: bool) -> tuple[bytes, int]:
    """Add the hierarchies that a table lacks.

    Args:
        table: The kernel's table.
        served: The lines of the file system's ``pid.PID``: controllers, number of groups, the kernel's name
            of the hierarchy and the process' group, with tabs between them.
        whole: Whether it is /proc/cgroups, with a line for each controller.

    Returns:
        The table, and how many lines are new or have another name. The new hierarchies have the numbers after
        the kernel's.
    """
    lines = [line for line in table.split(b"\n") if line]
    fields = [line.split(b"\t" if whole else b":", 2) for line in lines if not line.startswith(b"#")]
    named = {name for field in fields for name in field[0 if whole else 1].split(b",")}
    number = max((int(field[1 if whole else 0].partition(b"\t")[0]) for field in fields), default=0)
    added: list[bytes] = []
    renamed = 0
    for line in served.splitlines():
        names, groups, stand_in, path = line.split(b"\t", 3)
        if named.intersection(names.split(b",")):
            continue
        if stand_in and stand_in in named:
            lines = [_renamed(each, stand_in, names, whole=whole) for each in lines]
            renamed += 1
            continue
        number += 1
        if whole:
            added += [b"%s\t%d\t%s\t1" % (name, number, groups) for name in names.split(b",")]
        else:
            # A hierarchy without a controller has a name (systemd's).
            named_only = b"name=" if names == b"systemd" else b""
            added.append(b"%d:%s%s:%s" % (number, named_only, names, path))
    # The kernel prints the highest number first in /proc/PID/cgroup.
    complete = [*lines, *added] if whole else [*reversed(added), *lines]
    return b"\n".join(complete) + b"\n", len(added) + renamed


def _renamed(line: bytes, stand_in: bytes, name: bytes, *, whole: bool) -> bytes:
    """Return a table's line with another controller's name, if it is that controller's."""
    at, separator = (0, b"\t") if whole else (1, b":")
    fields = line.split(separator, 2)
    if line.startswith(b"#") or fields[at] != stand_in:
        return line
    fields[at] = name
    return separator.join(fields)
