"""The plugin's program: a shell script for ADD and DEL, and Python for all else.

A pod's life takes an ADD and a DEL or two. In gVisor a start of Python costs 75 ms of processor time, and a
shell's 13 ms. The script carries out what containerd asks for with the layer's own configuration. Python does
the rest: another configuration, an attachment that exists, a range that is full.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any

_SCRIPT = r"""#!{shell}
# Written by k3s-sandbox: a CNI plugin (CNI specification 1.1.0, section 2).
case $CNI_COMMAND in
  ADD | DEL) ;;
  *) exec {python} ;;
esac
IFS= read -r config
slow() {{
  {{ printf '%s\n' "$config"; cat; }} | {python}
  exit
}}
case $CNI_CONTAINERID in '' | [!a-zA-Z0-9]* | *[!a-zA-Z0-9_.-]*) slow ;; esac
case $CNI_IFNAME in '' | . | .. | *[!a-zA-Z0-9_.-]* | ????????????????*) slow ;; esac
case $CNI_NETNS in *[!a-zA-Z0-9_./-]*) slow ;; esac
state={state}
key=$CNI_CONTAINERID:$CNI_IFNAME
cd "$state" 2>/dev/null || slow
if [ "$CNI_COMMAND" = DEL ]; then
  case $config in {prefix}*) ;; *) slow ;; esac
  [ -e "$key" ] || exit 0
  address= holder=
  read -r address <"$key"
  [ -n "$address" ] && [ -e "$address" ] && read -r holder <"$address"
  [ "$holder" = "$CNI_CONTAINERID $CNI_IFNAME" ] || slow
  rm "$address" "$key"
  exit
fi
[ "$config" = {whole} ] && [ -n "$CNI_NETNS" ] || slow
set -C
printf '' 2>/dev/null >"$key" || slow
last=
[ -e last ] && read -r last <last
number=-1 rest=$last
case $last in
  *.*.*.*)
    number=0
    while [ -n "$rest" ]; do
      number=$((number * 256 + ${{rest%%.*}}))
      case $rest in *.*) rest=${{rest#*.}} ;; *) rest= ;; esac
    done
    ;;
esac
tries=0
while :; do
  number=$((number + 1))
  {{ [ $number -ge {first} ] && [ $number -le {last} ]; }} || number={first}
  tries=$((tries + 1))
  if [ $tries -gt {count} ]; then
    rm "$key"
    slow
  fi
  [ $number -eq {gateway} ] && continue
  address=$((number >> 24 & 255)).$((number >> 16 & 255)).$((number >> 8 & 255)).$((number & 255))
  printf '%s\n' "$CNI_CONTAINERID $CNI_IFNAME" 2>/dev/null >"$address" && break
done
set +C
printf '%s\n' "$address" >"$key"
printf '%s\n' "$address" >last
printf {answer} "$CNI_IFNAME" "$CNI_NETNS" "$address"
"""


def as_libcni(config: Mapping[str, Any]) -> str:
    """Return a configuration as the text that libcni writes: Go sorts the keys of a map."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def script(*, shell: str, python: str, config: Mapping[str, Any], state: str) -> str:
    """Return the script.

    Args:
        shell: The path inside of a POSIX shell, perhaps with an argument (``/bin/busybox sh``).
        python: The path inside of the program that answers everything.
        config: The configuration that the runtime passes on (section 3), without a previous result.
        state: The folder inside with the network's allocations.
    """
    network = IPv4Network(config["ipam"]["subnet"])
    gateway = network.network_address + 1
    text = as_libcni(config)
    # A result, prevResult, comes behind the name.
    prefix = text[: text.index('"type":"' + config["type"])]
    answer = {
        "cniVersion": config["cniVersion"],
        "interfaces": [{"name": "%s", "sandbox": "%s"}],
        "ips": [{"address": f"%s/{network.prefixlen}", "gateway": str(gateway), "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": str(gateway)}],
        "dns": {},
    }
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    return _SCRIPT.format(
        shell=shell,
        python=shlex.quote(python),
        state=shlex.quote(state),
        prefix=shlex.quote(prefix),
        whole=shlex.quote(text),
        first=first,
        last=last,
        count=last - first + 1,
        gateway=int(gateway),
        answer=shlex.quote(json.dumps(answer, separators=(",", ":")) + "\\n"),
    )
