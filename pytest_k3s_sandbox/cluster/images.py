"""Container images made of the machine's static busybox, without a registry and without a tool.

Images are written as an OCI image layout in one tar file (OCI Image Format Specification v1.1,
"image-layout.md", "manifest.md", "config.md", "layer.md"), which ``ctr images import`` reads. The same
input gives the same bytes: no time of day, no owner and no order of a folder gets in.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.support import files

PAUSE_REFERENCE = "registry.k8s.io/pause:3.10"
"""The name to pin as containerd's sandbox image."""

BUSYBOX_REFERENCE = "docker.io/library/busybox:1.36"
"""The name under which pods find busybox as ``busybox:1.36``."""

BUSYBOX = Path("/bin/busybox")
"""Where Debian's and Ubuntu's package busybox-static puts the program."""

# Two processes, for ash cannot sleep by itself; and the sleep by its full name, for the image has no links.
PAUSE_SCRIPT = "trap 'exit 0' TERM INT; while :; do /bin/busybox sleep 2147483647 & wait \"$!\"; done"
"""The pause container's program: it sleeps until SIGTERM or SIGINT, then exits with 0."""

_ELF32_HEADER = 52
_ELFCLASS64 = 2
_PT_INTERP = 3
# ELF's e_machine (elf.h) by the name that Go, and so the OCI configuration, gives the architecture.
_ARCHITECTURES = {3: "386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}


@dataclass(frozen=True)
class ImageFile:
    """One file, folder or symbolic link of an image's root.

    Attributes:
        path: Where it is, without a slash in front, e.g. ``bin/busybox``.
        mode: The permission bits.
        content: A file's bytes; None for a folder or a link.
        link: The target of a symbolic link; None for a file or a folder.
    """

    path: str
    mode: int = 0o755
    content: bytes | None = None
    link: str | None = None


@dataclass(frozen=True)
class ImageConfig:
    """The program that a container of an image runs, its environment and its machine.

    Attributes:
        entrypoint: The words that a pod's ``command`` replaces.
        cmd: The words that a pod's ``args`` replace.
        env: The environment.
        architecture: The machine in Go's words, e.g. ``amd64``.
    """

    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Mapping[str, str] = field(
        default_factory=lambda: {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin"}
    )
    architecture: str = "amd64"


def elf_architecture(image: bytes) -> str | None:
    """Tell for which machine a program was linked statically (elf(5): ELF header, program headers).

    Args:
        image: The program's bytes.

    Returns:
        The architecture in Go's words (``amd64``), or None if it is not an ELF program, asks for an
        interpreter (and so for shared libraries), or is for a machine that is not known here.
    """
    if len(image) < _ELF32_HEADER or image[:4] != b"\x7fELF":
        return None
    order = "<" if image[5] == 1 else ">"
    wide = image[4] == _ELFCLASS64
    machine = struct.unpack_from(f"{order}H", image, 18)[0]
    offset = struct.unpack_from(f"{order}Q" if wide else f"{order}I", image, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", image, 54 if wide else 42)
    for index in range(count):
        at = offset + index * size
        if at + 4 > len(image) or struct.unpack_from(f"{order}I", image, at)[0] == _PT_INTERP:
            return None
    return _ARCHITECTURES.get(machine)


def find_busybox(path: Path | None = None) -> Path:
    """Find a static busybox.

    Args:
        path: The only place to look; by default ``/bin/busybox``, then PATH.

    Returns:
        The program.

    Raises:
        MissingCapability: No busybox was found, or it needs shared libraries that an image does not have.
    """
    found = shutil.which("busybox")
    candidates = [path] if path is not None else [BUSYBOX, *([Path(found)] if found else [])]
    seen = [candidate for candidate in candidates if candidate.is_file()]
    for candidate in seen:
        if elf_architecture(candidate.read_bytes()) is not None:
            return candidate
    what = "container images cannot be built"
    remedy = "apt-get install -y busybox-static"
    if seen:
        raise MissingCapability(what, cause=f"{seen[0]} is not a static ELF program", remedy=remedy)
    raise MissingCapability(what, cause=f"there is no {candidates[0]}", remedy=remedy)


@dataclass(frozen=True)
class Image:
    """An image of one layer.

    Attributes:
        reference: Its full name, e.g. ``docker.io/library/busybox:1.36``.
        root: The root's content; the order does not matter.
        program: The program that a container of it runs.
    """

    reference: str
    root: Sequence[ImageFile]
    program: ImageConfig


def pause(reference: str = PAUSE_REFERENCE, busybox: Path | None = None) -> Image:
    """Return the image that holds a pod's namespaces open.

    Args:
        reference: The image's name.
        busybox: The static busybox to use instead of the machine's.

    Raises:
        MissingCapability: The machine has no static busybox.
    """
    content = find_busybox(busybox).read_bytes()
    program = ImageConfig(
        entrypoint=["/bin/busybox", "sh", "-c", PAUSE_SCRIPT],
        architecture=elf_architecture(content) or "amd64",
    )
    # containerd copies a root for every container, so that this one has a single file.
    return Image(reference, [ImageFile("bin"), ImageFile("bin/busybox", content=content)], program)


def busybox(reference: str = BUSYBOX_REFERENCE, path: Path | None = None) -> Image:
    """Return an image with busybox and a link for each of its programs in ``/bin``.

    Args:
        reference: The image's name.
        path: The static busybox to use instead of the machine's; it is run once for ``--list``.

    Raises:
        MissingCapability: The machine has no static busybox.
    """
    found = find_busybox(path)
    listed = subprocess.run([str(found), "--list"], check=True, capture_output=True, text=True, timeout=10)
    content = found.read_bytes()
    program = ImageConfig(cmd=["sh"], architecture=elf_architecture(content) or "amd64")
    return Image(reference, busybox_root(content, listed.stdout.split()), program)


def busybox_root(content: bytes, applets: Iterable[str]) -> list[ImageFile]:
    """Lay out a root file system around one busybox.

    Args:
        content: The program.
        applets: The names it goes by.

    Returns:
        The root's entries.
    """
    links = sorted(set(applets) - {"busybox"})
    return [
        ImageFile("bin"),
        ImageFile("bin/busybox", content=content),
        *(ImageFile(f"bin/{name}", 0o777, link="busybox") for name in links),
        ImageFile("etc"),
        ImageFile("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n"),
        ImageFile(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ImageFile("root", 0o700),
        ImageFile("tmp", 0o1777),
    ]


def write_images(target: Path, images: Sequence[Image]) -> Path:
    """Write images into one archive.

    Args:
        target: The tar file; replaced as a whole when it exists.
        images: The images.

    Returns:
        ``target``.
    """
    content = archive(images)
    with files.replacing(target) as file:
        file.write(content)
    return target


def archive(images: Sequence[Image]) -> bytes:
    """Return images as a tar of an OCI image layout.

    Args:
        images: The images.

    Returns:
        The tar; the same for the same input.
    """
    blobs: dict[str, bytes] = {}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [_described(image, blobs) for image in images],
    }
    return _tar(
        [
            ImageFile("oci-layout", 0o644, _json({"imageLayoutVersion": "1.0.0"})),
            ImageFile("index.json", 0o644, _json(index)),
            ImageFile("blobs"),
            ImageFile("blobs/sha256"),
            *(ImageFile(path, 0o644, blob) for path, blob in blobs.items()),
        ]
    )


def _described(image: Image, blobs: dict[str, bytes]) -> dict[str, Any]:
    """Return an image's entry in the index; its parts are put into ``blobs``."""
    program = image.program
    layer = _tar(image.root)
    config = _json(
        {
            "architecture": program.architecture,
            "os": "linux",
            "config": {
                "Env": [f"{name}={value}" for name, value in program.env.items()],
                **({"Entrypoint": list(program.entrypoint)} if program.entrypoint else {}),
                **({"Cmd": list(program.cmd)} if program.cmd else {}),
            },
            # The layer is not compressed, so that its diff id is its digest.
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    blobs.update({f"blobs/sha256/{_hex(blob)}": blob for blob in (layer, config, manifest)})
    return {
        **_descriptor("application/vnd.oci.image.manifest.v1+json", manifest),
        "platform": {"architecture": program.architecture, "os": "linux"},
        "annotations": {
            # The first is containerd's own and is taken as it is; the second is the specification's.
            "io.containerd.image.name": image.reference,
            "org.opencontainers.image.ref.name": image.reference.rpartition(":")[2],
        },
    }


def _tar(entries: Iterable[ImageFile]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in sorted(entries, key=lambda entry: entry.path):
            member = tarfile.TarInfo(entry.path)  # its time, owner and group are 0
            member.mode = entry.mode
            if entry.link is not None:
                member.type = tarfile.SYMTYPE
                member.linkname = entry.link
            elif entry.content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(entry.content)
            tar.addfile(member, io.BytesIO(entry.content) if entry.content is not None else None)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _hex(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _digest(blob: bytes) -> str:
    return f"sha256:{_hex(blob)}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}
