"""The way to a cluster of ours depends on nothing of the user's: no proxy, no variable, no file.

Company networks and cloud IDEs set ``HTTPS_PROXY``. A proxy cannot reach a sandbox, which is on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

NO_PROXY = ("NO_PROXY", "no_proxy")
"""Go reads the one or the other, curl and Python the second one first."""

UNREACHED = "http://127.0.0.1:9"
"""The proxy of hosts that need none; port 9 is discard (RFC 863)."""


def without_proxy(environ: Mapping[str, str], address: str) -> dict[str, str]:
    """Return variables under which an address is reached directly, and others as before.

    Args:
        environ: The variables so far.
        address: The address.
    """
    known = next((environ[name] for name in NO_PROXY if environ.get(name)), "")
    words = [word.strip() for word in known.split(",") if word.strip()]
    value = ",".join([*words, *([] if address in words or "*" in words else [address])])
    return {**environ, **dict.fromkeys(NO_PROXY, value)}


def kubectl_environment(environ: Mapping[str, str], address: str, folder: Path) -> dict[str, str]:
    """Return the variables of a kubectl that takes nothing from the user but the way to other hosts.

    kubectl reads ``~/.kube/kuberc`` from 1.33 on (aliases, and defaults of options), ``~/.kube/config``,
    ``~/.kube/cache``, variables that begin with KUBE, and ``POD_NAMESPACE``: see client-go's tools/clientcmd,
    and kubectl's pkg/kuberc and pkg/cmd/util. Its messages are in the language of ``LC_ALL``.

    Args:
        environ: This process' variables.
        address: The API server's address.
        folder: A folder of ours, for kubectl's cache and as its home.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("KUBE") and name != "POD_NAMESPACE"
    }
    ours = {
        "HOME": str(folder),
        "KUBECACHEDIR": str(folder / "cache"),
        "KUBECTL_KUBERC": "false",
        "KUBERC": "off",
        "LC_ALL": "C",
    }
    return {**without_proxy(kept, address), **ours}


def client(kubeconfig: Path) -> ApiClient:
    """Return a client of the ``kubernetes`` package that reaches an API server directly.

    Its websockets (exec, attach, port-forward) are those of websocket-client. That package reads the
    environment when the client's configuration names no proxy (``websocket._url.get_proxy_info``). Therefore
    the configuration names one, and exempts the only host that this client talks to.

    Args:
        kubeconfig: The file with the address and the credentials.
    """
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    settings: Any = type.__call__(Configuration)  # not a copy of the default that a test may have set
    config.load_kube_config(str(kubeconfig), client_configuration=settings, persist_config=False)
    settings.proxy = UNREACHED
    settings.no_proxy = urlsplit(settings.host).hostname
    return ApiClient(settings)
