"""A tracer of plain python-ptrace that stops at every system call, as the research's interceptor did.

``python -m pytest_k3s_sandbox.bench.every_call CMD``. It looks at the call's number and changes nothing, so
that its cost is a lower bound.
"""

from __future__ import annotations

import os
import sys

from ptrace.debugger import (
    NewProcessEvent,
    ProcessEvent,
    ProcessExecution,
    ProcessExit,
    ProcessSignal,
    PtraceDebugger,
)
from ptrace.debugger.child import createChild


def trace(argv: list[str]) -> int:
    """Run a program and all that descends from it; return its exit code."""
    debugger = PtraceDebugger()
    debugger.traceFork()
    debugger.traceClone()
    debugger.traceExec()
    root = createChild(argv, no_stdout=False, env=dict(os.environ))
    debugger.addProcess(root, is_attached=True).syscall()
    code = 0
    while debugger:
        try:
            event: ProcessEvent = debugger.waitSyscall()
        except ProcessExit as ended:
            if ended.process.pid == root and ended.exitcode is not None:
                code = ended.exitcode
            continue
        except ProcessSignal as received:
            received.process.syscall(received.signum)
            continue
        except NewProcessEvent as born:
            born.process.syscall()
            born.process.parent.syscall()
            continue
        except ProcessExecution as executed:
            executed.process.syscall()
            continue
        _ = event.process.getreg("orig_rax")
        event.process.syscall()
    debugger.quit()
    return code


if __name__ == "__main__":
    sys.exit(trace(sys.argv[1:]))
