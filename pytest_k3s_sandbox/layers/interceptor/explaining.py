"""The debug message about the decision on one call."""

from __future__ import annotations

import os

from pytest_k3s_sandbox.layers.interceptor import messages
from pytest_k3s_sandbox.layers.interceptor.matching import NOTHING, Decision, PathRules
from pytest_k3s_sandbox.layers.interceptor.syscalls import PathCall


def explain(tid: int, of: PathCall, path: bytes | None, rules: PathRules, decision: Decision) -> None:
    """Log the decision on a path and its reason; None stands for a call without a known path."""
    if path is None:
        why = "there is no path, or its folder is not known; the answer is the kernel's"
    elif decision is NOTHING:
        why = rules.explain(path, of.group)
    else:
        redirect = decision.redirect
        found = [
            redirect and f"{redirect[0].label} to {os.fsdecode(redirect[1]) or 'content'}",
            decision.mount_table and "a mount table",
            decision.cgroup_table and "a cgroup table",
            decision.substitute and decision.substitute.label,
            decision.mask and decision.mask.label,
            decision.fault and decision.fault.label,
        ]
        why = ", ".join(text for text in found if text)
    messages.say("debug", f"{tid} {of.name} {os.fsdecode(path or b'?')}: {why}")
