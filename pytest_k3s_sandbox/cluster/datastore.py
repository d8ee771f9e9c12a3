"""A datastore on which the control plane has been started once: the objects that every first start writes.

An API server writes some 300 objects into an empty datastore (roles, priority classes, flow
schemas, namespaces), and the controller manager one service account for each of its controllers.
They are the same at every start of the same programs, so they are written once a machine, and a
cluster begins with a copy. The objects of the DNS (:mod:`~.dns`) are in it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import ClusterError

FILE = "state.db"
FORMAT = 1
"""Counts changes of the result of :func:`clean`, so that older seeds are not used."""

OF_ONE_RUN = (
    "/registry/masterleases/%",  # which API servers live, by address
    "/registry/leases/kube-system/apiserver-%",  # likewise, by identity
    "/registry/services/endpoints/default/kubernetes",  # their addresses
    "/registry/endpointslices/default/kubernetes",
    "/registry/configmaps/kube-system/extension-apiserver-authentication",  # holds that run's CA
    "/registry/configmaps/%/kube-root-ca.crt",  # likewise
    "/registry/events/%",
)
"""Keys, as SQL patterns, that belong to the run that wrote them; each is written anew at a start."""


def identity(programs: Iterable[Path], objects: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the name of a seed that these programs write.

    Args:
        programs: The files of datastore, API server and controller manager.
        objects: The objects that are put into it.
    """
    facts = [json.dumps(each, sort_keys=True) for each in objects]
    for path in programs:
        real = path.resolve()
        stat = real.stat()
        facts.append(f"{real} {stat.st_size} {stat.st_mtime_ns}")
    digest = hashlib.sha256("\n".join((str(FORMAT), *facts)).encode()).hexdigest()
    return f"datastore-{digest[:16]}"


def clean(database: Path) -> int:
    """Remove the keys of its own run from a stopped datastore, and leave one file.

    Args:
        database: kine's SQLite file; its write-ahead log is merged into it.

    Returns:
        How many rows remain.

    Raises:
        ClusterError: It is not a datastore of kine's with objects in it.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            for pattern in OF_ONE_RUN:
                connection.execute("DELETE FROM kine WHERE name LIKE ?", (pattern,))
            (rows,) = connection.execute("SELECT COUNT(*) FROM kine WHERE name LIKE '/registry/%'").fetchone()
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = DELETE")  # also merges the log
    except sqlite3.Error as error:
        raise ClusterError(f"datastore {database}", cause=str(error)) from error
    if not rows:
        raise ClusterError(f"datastore {database}", cause="the control plane wrote nothing into it")
    return int(rows)
