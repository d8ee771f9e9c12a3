"""The ptrace interceptor: answers of system calls, changed from outside."""
