"""Lines as Kubernetes v1.34.4 with cAdvisor v0.52.1, containerd v2.1.8 and the field guide have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.log_classifier import LineKind, LogError, classify

HEADER = "E1123 14:02:31.120417    4711 "
WARNING = "W1123 14:02:31.120417    4711 "
CONTAINERD = 'time="2026-11-23T14:02:31.1Z" level=error '

# Each with the source that prints it, in the module that the docstring names.
LINES = [
    # cadvisor/manager/container.go, housekeepingTick; a warning, but a measurement is lost
    (
        WARNING + 'container.go:588] Failed to update stats for container "/": '
        "openat2 /sys/fs/cgroup/cpuacct/cpuacct.usage_percpu: interrupted system call",
        LineKind.CADVISOR,
        "EINTR",
    ),
    # cadvisor/manager/manager.go: unstructured, while the kubelet's own manager.go files log structured
    (
        HEADER + "manager.go:294] Registration of the raw container factory failed: no cgroup",
        LineKind.CADVISOR,
        None,
    ),
    # cadvisor/machine/info.go
    (
        HEADER + "info.go:119] Failed to get system UUID: open /etc/machine-id: no such file or directory",
        LineKind.CADVISOR,
        "ENOENT",
    ),
    # kubelet/kubelet.go and cm/container_manager_linux.go, cadvisor/cache/memory/memory.go
    (
        HEADER + 'kubelet.go:1704] "Failed to start ContainerManager" err="failed to get rootfs info: '
        'unable to find data in memory cache"',
        LineKind.CADVISOR,
        None,
    ),
    # component-base/cli/run.go with cm/container_manager_linux.go
    (
        HEADER + 'run.go:72] "command failed" err="failed to run Kubelet: failed to get mounted cgroup '
        'subsystems: failed to find cgroup mounts"',
        LineKind.CADVISOR,
        None,
    ),
    # field guide, cAdvisor v0.55 and later
    (
        HEADER + 'cadvisor_stats_provider.go:567] "Partial failure issuing cadvisor.ContainerInfoV2" '
        'err="partial failures: [\\"/k8s.io/' + "0d" * 32 + '\\": RecentStats: '
        'unable to find data in memory cache]"',
        LineKind.YOUNG,
        None,
    ),
    # a run of exp08: two containers of one pod, each in brackets of its own
    (
        HEADER + 'cadvisor_stats_provider.go:567] "Partial failure issuing cadvisor.ContainerInfoV2" '
        'err="partial failures: [\\"/k8s.io/' + "0d" * 32 + '\\": RecentStats: '
        'unable to find data in memory cache], [\\"/k8s.io/' + "1e" * 32 + '\\": RecentStats: '
        'unable to find data in memory cache]"',
        LineKind.YOUNG,
        None,
    ),
    (
        HEADER + 'cadvisor_stats_provider.go:567] "Partial failure issuing cadvisor.ContainerInfoV2" '
        'err="partial failures: [\\"/k8s.io/' + "0d" * 32 + '\\": RecentStats: '
        'unable to find data in memory cache], [\\"/\\": RecentStats: unable to find data in memory cache]"',
        LineKind.CADVISOR,
        None,
    ),
    (
        HEADER + 'cadvisor_stats_provider.go:567] "Partial failure issuing cadvisor.ContainerInfoV2" '
        'err="partial failures: [\\"/\\": RecentStats: unable to find data in memory cache]"',
        LineKind.CADVISOR,
        None,
    ),
    (HEADER + "fs.go:100] no plugin found for filesystem type: 9p", LineKind.CADVISOR, None),
    # kubelet/stats/cadvisor_stats_provider.go
    (
        HEADER + 'cadvisor_stats_provider.go:567] "Partial failure issuing cadvisor.ContainerInfoV2" '
        'err="partial failures"',
        LineKind.CADVISOR,
        None,
    ),
    # cmd/kubelet/app/server.go
    (
        HEADER + 'run.go:72] "command failed" err="failed to run Kubelet: failed to create kubelet: '
        'open /dev/kmsg: no such device"',
        LineKind.KMSG,
        "ENODEV",
    ),
    # field guide; cm/container_manager_linux.go, setupKernelTunables
    (
        HEADER + 'kubelet.go:1704] "Failed to start ContainerManager" err="[open '
        "/proc/sys/kernel/keys/root_maxbytes: no such file or directory, write "
        '/proc/sys/vm/overcommit_memory: input/output error]"',
        LineKind.SYSCTL,
        "EIO",
    ),
    # cm/container_manager_linux.go, validateSystemRequirements
    (
        HEADER + 'kubelet.go:1704] "Failed to start ContainerManager" err="system validation failed - '
        'Following Cgroup subsystem not mounted: [cpu cpuacct cpuset memory]"',
        LineKind.CGROUP,
        None,
    ),
    # volume/util/operationexecutor/operation_generator.go
    (
        HEADER + 'nestedpendingoperations.go:348] "Operation for ... failed" err="UnmountVolume.TearDown '
        'failed for volume \\"kube-api-access\\" : unmount failed: exit status 32\\numount: '
        'target is busy."',
        LineKind.MOUNT,
        "EBUSY",
    ),
    # kubelet/kubelet.go
    (
        HEADER + 'kubelet.go:3012] "Container runtime network not ready" networkReady="NetworkReady=false '
        'reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized"',
        LineKind.CNI,
        None,
    ),
    # kuberuntime/kuberuntime_manager.go
    (
        HEADER + 'kuberuntime_manager.go:1343] "CreatePodSandbox for pod failed" err="rpc error: code = '
        'Unknown desc = failed to start sandbox" pod="default/hello"',
        LineKind.RUNTIME,
        None,
    ),
    # cri-client/pkg/remote_runtime.go, interrupted below
    (
        HEADER + 'remote_runtime.go:220] "RunPodSandbox from runtime service failed" err="rpc error: openat '
        '/run/x: interrupted system call"',
        LineKind.EINTR,
        "EINTR",
    ),
    # containerd internal/cri/instrument/instrumented_service.go
    (
        CONTAINERD + 'msg="RunPodSandbox for &PodSandboxMetadata{Name:hello,} '
        'failed, error" error="failed to create containerd task"',
        LineKind.RUNTIME,
        None,
    ),
    # client-go/tools/cache/reflector.go before the API server listens
    (
        HEADER + 'reflector.go:205] "Failed to watch" err="failed to list *v1.Node: Get nodes: dial tcp '
        '10.77.0.1:6443: connect: connection refused" type="*v1.Node"',
        LineKind.API,
        "ECONNREFUSED",
    ),
    (HEADER + 'pod_workers.go:1324] "Error syncing pod, skipping" pod="default/hello"', LineKind.OTHER, None),
    ("Error: failed to parse kubelet flag: unknown flag: --nonsense", LineKind.OTHER, None),
    ("panic: runtime error: invalid memory address or nil pointer dereference", LineKind.OTHER, None),
]


@pytest.mark.parametrize(("line", "kind", "errno"), LINES, ids=range(len(LINES)))
def test_an_error_line_has_its_kind(line: str, kind: LineKind, errno: str | None) -> None:
    found = classify(line + "\n")
    assert found is not None
    assert (found.kind, found.errno) == (kind, errno)


@pytest.mark.parametrize(
    "line",
    [
        "",
        'I1123 14:02:31.120417    4711 kubelet.go:1704] "Starting" err="target is busy"',
        # only warns, and costs no measurement of the root container (field guide)
        WARNING + "fs.go:502] Not collecting filesystem statistics because file "
        '"/proc/diskstats" was not found',
        'time="2026-11-23T14:02:31Z" level=info msg="failed to load plugin"',
        'time="2026-11-23T14:02:31Z" level=warning msg="failed to load plugin"',
        "        some continued line with cadvisor in it",
    ],
)
def test_a_line_that_is_no_error_has_no_kind(line: str) -> None:
    assert classify(line) is None


def test_the_kubelets_own_manager_is_not_cadvisor() -> None:
    found = classify(HEADER + 'manager.go:300] "Failed to allocate device" err="device or resource busy"')
    assert found == LogError(
        LineKind.MOUNT, "error", '"Failed to allocate device" err="device or resource busy"', "EBUSY"
    )


def test_severities_are_told_apart() -> None:
    fatal = classify("F1123 14:02:31.120417    4711 server.go:1] no way on")
    panicked = classify('time="2026-11-23T14:02:31Z" level=fatal msg="no way on"')
    assert fatal is not None
    assert panicked is not None
    assert (fatal.severity, panicked.severity) == ("fatal", "fatal")


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    found = classify(HEADER + "kubelet.go:1] " + text)
    assert found is not None
    assert found.severity == "error"
