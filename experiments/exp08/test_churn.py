"""Experiment 08, the long question: does the node stay Ready while pods come and go?

The research asked for 60 minutes and never ran them. A pod is created every ten seconds and deleted
when it is Ready, one stays throughout; logs and exec are asked for every minute. ``-m nightly`` runs
an hour, or as long as ``--k3s-duration`` says; the default run looks whether all this works. It comes
before ``test_exp08`` so that its time is a part of the hold there.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.lab.churn import Churn, pod
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS
from pytest_k3s_sandbox.report.records import Event, Measurement
from pytest_k3s_sandbox.report.series import transitions
from pytest_k3s_sandbox.report.trend import trend
from pytest_k3s_sandbox.settings import OPTIONS

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [pytest.mark.exp08, pytest.mark.k3s_requires("root", "fuse", "ptrace")]

STEADY = "steady"  # the pod that stays
SHORT = 30.0
HOUR = 3600.0
READY_SECONDS = 30
MINUTE = 60.0
SETTLE = (
    0.25  # the part of a run before memory is looked at: caches fill, the garbage collector finds its pace
)
SHARE, LEAST = 0.05, 2.0**20  # the growth of memory that is allowed over the rest: 5 %, or a MiB
REALISTIC = 600.0  # the research's words: "realistic" is ten minutes and more


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long the node is watched; an hour for the nightly run unless an option says otherwise."""
    duration = request.config.stash[SETTINGS].duration
    usual = next(float(option.default) for option in OPTIONS if option.name == "duration")
    if request.node.get_closest_marker("nightly") is None:
        return SHORT
    return HOUR if duration == usual else duration


def _start_steady(k3s: Cluster, namespace: str, timeout_scale: float) -> None:
    """Start a pod that stays, and wait until it is Ready."""
    k3s.core.create_namespaced_pod(namespace, pod(STEADY))
    k3s.wait(
        lambda: is_ready(k3s.core.read_namespaced_pod(STEADY, namespace).status.conditions),
        f"the pod {STEADY} to be Ready",
        Deadline.after(READY_SECONDS * timeout_scale),
    )


def _ask(k3s: Cluster, namespace: str, name: str) -> str | None:
    """Ask for logs and exec; return the failures."""
    logs = k3s.kubectl("logs", "-n", namespace, name, check=False)
    done = k3s.kubectl("exec", "-n", namespace, name, "--", "sh", "-c", "echo out; exit 3", check=False)
    if logs.stdout != "hello\n":
        return f"logs: {logs.stdout or logs.stderr}"
    if (done.stdout, done.returncode) != ("out\n", 3):
        return f"exec: {done.stdout}{done.stderr}, exit code {done.returncode}"
    return None


@pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.nightly)])
def test_the_node_is_stable(
    length: str,
    seconds: float,
    k3s_session: NodeSession,
    k3s: Cluster,
    k3s_readiness: Sampler,
    k3s_namespace: str,
    k3s_claim: Claim,
    timeout_scale: float,
) -> None:
    """Ready in every sample, every pod starts, no error of cAdvisor's, and no memory that grows."""
    writer = k3s_session.writer
    churn = Churn(
        k3s.core,
        k3s_namespace,
        writer.now,
        lambda what, name: writer.append(
            Event(t=writer.now(), kind=f"pod-{what}", what=f"{k3s_namespace}/{name}")
        ),
        timeout=READY_SECONDS * timeout_scale,
    )
    before = len(k3s_readiness.error_lines)
    # Not the cluster's first sample: other tests may have used the cluster before.
    begin = max(number for number, sample in enumerate(k3s_readiness.samples) if sample.node_ready)
    questions = 0
    trouble: list[str] = []
    with (
        k3s_claim.together() as claim,
        claim.of(f"stable-restarts-{length}", "The pod that stays never restarts", limit=0) as restarted,
        claim.of(f"stable-cadvisor-{length}", "cAdvisor logs no error", limit="0") as clean,
        claim.of(f"stable-ask-{length}", "kubectl logs and exec answer throughout", limit="all") as answers,
        claim.of(f"stable-gone-{length}", "Every deleted pod goes", limit="0 left") as gone,
        claim.of(f"stable-pods-{length}", "Every pod starts", limit="all") as pods,
        claim.of(
            f"stable-ready-{length}",
            f"The node is Ready in every sample of {seconds:g} s in which pods come and go",
            limit="all samples, 0 transitions",
        ) as always,
    ):
        began = writer.now()
        always.so_far = lambda: f"{writer.now() - began:.0f} of {seconds:g} s, {len(churn.lives)} pods"
        pods.so_far = gone.so_far = answers.so_far = clean.so_far = restarted.so_far = always.so_far
        _start_steady(k3s, k3s_namespace, timeout_scale)
        started = asked = writer.now()
        while k3s_readiness.failure is None and (writer.now() < started + seconds or not churn.idle):
            churn.step(create=writer.now() < started + seconds)
            if writer.now() - asked >= min(MINUTE, seconds / 2):
                asked = writer.now()
                questions += 1
                trouble += filter(None, [_ask(k3s, k3s_namespace, STEADY)])
            if writer.now() > started + seconds + 4 * READY_SECONDS * timeout_scale:
                break  # pods that never go are seen below
            time.sleep(0.5)
        assert k3s_readiness.failure is None
        samples = k3s_readiness.samples[begin:]
        watched = samples[-1].t - samples[0].t

        changes = transitions(samples)[1:]
        always.judge(
            # A sample without an answer does not count as Ready.
            not changes and all(sample.node_ready for sample in samples),
            f"{sum(sample.node_ready or False for sample in samples)} of {len(samples)} samples, "
            f"{len(changes)} transitions",
        )
        failed = [f"{life.name}: {life.failure}" for life in churn.lives if life.failure is not None]
        starts = [life.ready - life.asked for life in churn.lives if life.ready is not None]
        pods.judge(
            bool(starts) and not failed,
            f"{len(churn.lives) - len(failed)} of {len(churn.lives)}"
            + "".join(f"; {text}" for text in failed[:3]),
        )
        if starts:
            writer.append(
                Measurement(
                    name=f"pod-start-{length}",
                    value=round(statistics.median(starts), 2),
                    unit="s",
                    n=len(starts),
                    values=tuple(round(start, 2) for start in starts),
                )
            )
        left = [life.name for life in churn.lives if life.gone is None]
        gone.judge(not left, f"{len(left)} left")
        answers.judge(
            questions > 0 and not trouble,
            f"{questions - len(trouble)} of {questions}" + "".join(f"; {text}" for text in trouble[:3]),
        )
        cadvisor = [line for line in k3s_readiness.error_lines[before:] if line.kind == "cadvisor"]
        clean.judge(not cadvisor, f"{len(cadvisor)}" + "".join(f"; {line.text}" for line in cadvisor[:1]))
        status = k3s.core.read_namespaced_pod(STEADY, k3s_namespace).status
        restarts = sum(container.restart_count for container in status.container_statuses)
        restarted.judge(restarts == 0, restarts)
        _costs(k3s_session, length, watched, claim)


def _costs(k3s_session: NodeSession, length: str, watched: float, k3s_claim: Claim) -> None:
    """State each layer's share of a core, and claim over a long run that its memory does not grow."""
    costed = [sample for sample in k3s_session.readiness.samples if sample.cost]
    costed = [sample for sample in costed if sample.t >= costed[-1].t - watched]
    settled = [sample for sample in costed if sample.t >= costed[0].t + SETTLE * watched]
    for name in sorted({name for sample in costed for name in sample.cost}):
        mine = [sample for sample in costed if name in sample.cost]
        passed = mine[-1].t - mine[0].t
        used = mine[-1].cost[name].cpu_seconds - mine[0].cost[name].cpu_seconds
        if passed > 0:
            k3s_session.writer.append(
                Measurement(
                    name=f"cpu-{name}-{length}",
                    value=round(100 * used / passed, 2),
                    unit="% of a core",
                    n=len(mine),
                )
            )
        line = trend(
            [(sample.t, float(sample.cost[name].rss_bytes)) for sample in settled if name in sample.cost]
        )
        if line is None or watched < REALISTIC:
            continue  # too short to tell growth from noise
        mean, growth = line.mean / 2**20, line.growth / 2**20
        k3s_claim(
            f"stable-memory-{name}-{length}",
            f"The memory of {name} does not grow",
            line.flat(SHARE, LEAST),
            f"{mean:.1f} MiB, {growth:+.2f} MiB over the last {(1 - SETTLE) * watched / 60:.0f} min",
            f"{SHARE:.0%} or 1 MiB",
        )
