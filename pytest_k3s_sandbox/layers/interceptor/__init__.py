"""The ptrace interceptor changes the results of system calls."""
