"""Loading a user's own container image into a node, without a registry."""

from __future__ import annotations

import secrets
import tarfile
from pathlib import Path

from pytest_k3s_sandbox.cluster.base import ImageLoader
from pytest_k3s_sandbox.cluster.names import full, names_in
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, StartError
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Reachable


def load_archive(images: ImageLoader, sandbox: Reachable, tar: Path, deadline: Deadline) -> tuple[str, ...]:
    """Load an image from an archive on the machine, so that pods can use it.

    Pods name the image as the archive does, and need ``imagePullPolicy: IfNotPresent`` (or ``Never``)
    where its tag is ``latest`` (Kubernetes' "Images", default image pull policy).

    Args:
        images: Puts images into the node's containerd.
        sandbox: Where the node runs.
        tar: The archive, as ``docker save`` or ``skopeo copy ... oci-archive:...`` makes it.
        deadline: When to give up.

    Returns:
        The names by which a pod can use the loaded image.

    Raises:
        ConfigError: It is not a tar archive, or it names no image.
        ClusterError: containerd refused it, in its own words; nothing of it is left.
    """
    if not (tar.is_file() and tarfile.is_tarfile(tar)):
        raise ConfigError(
            f"image {tar}",
            cause="it is not a tar archive" if tar.is_file() else "there is no such file",
            remedy="make one, for example with `docker save IMAGE --output FILE`",
        )
    named = names_in(tar)
    if named == ():
        raise ConfigError(
            f"image {tar}",
            cause="the archive gives its image no full name, so that no pod could use it",
            remedy="name it, then save it by that name: `docker tag ID example.org/NAME:TAG`, "
            "`docker save example.org/NAME:TAG --output FILE`",
        )
    inside = f"{STATE_DIR}/{secrets.token_hex(8)}.tar"
    try:
        sandbox.files.copy_in(tar, inside)
        images.load_image(sandbox, inside, deadline)
        there = images.images(sandbox, deadline)
    except StartError as error:
        raise ClusterError(
            f"image {tar} could not be loaded", cause=error.cause or error.what, log=sandbox.logs
        ) from error
    finally:
        sandbox.files.remove(inside)
    usable = tuple(name for name in named or () if full(name) in there)
    if not usable:
        raise ClusterError(
            f"image {tar} was loaded, but no pod can use it",
            cause=f"containerd has none of its names: {', '.join(named or ()) or 'none was found'}",
            remedy="give an archive of an image for linux/amd64",
            log=sandbox.logs,
        )
    return usable
