"""What programs see under the interceptor, on whatever kernel the tests run: Linux or gVisor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.interceptor_tools import command, f_type, python, redirect, run, stats

pytestmark = pytest.mark.k3s_requires("ptrace")


# What is trapped.


def test_no_rules_trap_nothing(tmp_path: Path) -> None:
    assert run("", tmp_path, "ls", "/").returncode == 0
    assert stats(tmp_path)["trapped"] == []
    assert stats(tmp_path)["stops"].get("seccomp", 0) == 0


def test_statfs_rules_trap_no_open(tmp_path: Path) -> None:
    assert run("[[statfs]]\noriginal=1\nreplacement=2\n", tmp_path, "cat", "/etc/passwd").returncode == 0
    assert stats(tmp_path)["trapped"] == ["fstatfs", "statfs"]


# What is changed.


def test_statfs_changes_the_type_and_nothing_else(tmp_path: Path) -> None:
    program = python(
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        a, b = (ctypes.c_long * 15)(), (ctypes.c_long * 15)()
        assert libc.statfs(b".", a) == 0 and libc.fstatfs(os.open(".", 0), b) == 0
        print(a[0], b[0], *[a[i] for i in (1, 2, 5, 8)])
        """
    )
    plain = subprocess.run(program, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    rules = f'[[statfs]]\noriginal={f_type(str(tmp_path))}\nreplacement=0xEF54\nunder="{tmp_path}"\n'
    done = subprocess.run(
        command(rules, tmp_path, *program), check=True, capture_output=True, text=True, cwd=tmp_path
    )
    seen = done.stdout.split()
    assert seen[:2] == [str(0xEF54)] * 2
    assert seen[2] == plain[2]  # block size; free blocks and files change under any test
    assert seen[-1] == plain[-1]  # name length


def test_statfs_is_left_alone_outside_the_folder_and_when_it_fails(tmp_path: Path) -> None:
    rules = f'[[statfs]]\noriginal={f_type("/")}\nreplacement=0xEF54\nunder="{tmp_path}"\n'
    done = run(
        rules,
        tmp_path,
        *python(
            """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            a = (ctypes.c_long * 15)()
            print(libc.statfs(b"/", a), a[0])
            print(libc.statfs(b"/no/such", a), ctypes.get_errno())
            print(libc.statfs(b"/", None), ctypes.get_errno())
            """
        ),
    )
    assert done.stdout.splitlines() == [f"0 {f_type('/')}", "-1 2", "-1 14"]


def test_a_path_leads_elsewhere_however_it_is_written(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    for where, text in ((folder, "real"), (other, "changed")):
        (where / "sub").mkdir(parents=True)
        (where / "sub/file").write_text(text)
    (folder / "only").write_text("kernel's")
    done = run(
        redirect(folder, other, "prefix"),
        tmp_path,
        *python(
            f"""
            import os
            os.chdir({str(folder)!r})
            fd = os.open("sub", os.O_DIRECTORY)
            print(open({str(folder / "sub/file")!r}).read())
            print(open({str(tmp_path)!r} + "//folder/./sub/../sub/file").read())
            print(open("sub/file").read())
            print(os.read(os.open("../sub/file", 0, dir_fd=fd), 99).decode())
            print(open("only").read())
            try: open("sub/missing")
            except FileNotFoundError: print("missing")
            """
        ),
    )
    assert done.stderr == ""
    # The folder's descriptor is of the other tree, as its open was led there, too.
    assert done.stdout.split("\n")[:-1] == ["changed"] * 4 + ["kernel's", "missing"]


def test_paths_at_the_limit_and_across_pages_and_bad_pointers(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    done = run(
        redirect(source, target),
        tmp_path,
        *python(
            f"""
            import ctypes, mmap, os, sys
            libc = ctypes.CDLL(None, use_errno=True)
            path = {os.fsencode(source)!r} + bytes(1)
            pages = mmap.mmap(-1, 3 * 4096)
            base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
            libc.munmap(ctypes.c_void_p(base + 2 * 4096), 4096)  # nothing mapped behind
            for offset in (0, 4096 - 3, 2 * 4096 - len(path)):
                pages[offset : offset + len(path)] = path
                fd = libc.open(ctypes.c_void_p(base + offset), 0)
                print(os.read(fd, 99).decode())
            long = b"/" * (4096 - len(path)) + path
            fd = libc.open(long, 0)
            print(os.read(fd, 99).decode())
            print(libc.open(b"/" + long, 0), ctypes.get_errno())
            print(libc.open(ctypes.c_void_p(8), 0), ctypes.get_errno())
            print(libc.open(ctypes.c_void_p(base + 2 * 4096), 0), ctypes.get_errno())
            sys.stdout.flush()
            os._exit(0)  # the mapping has a hole
            """
        ),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["other"] * 4 + ["-1 36", "-1 14", "-1 14"]


def test_openat2_beneath_a_folder_is_led_elsewhere(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("real")
    target.write_text("other")
    program = python(
        f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        folder = os.open({str(tmp_path)!r}, os.O_DIRECTORY)
        how = (ctypes.c_uint64 * 3)(0, 0, 8)  # RESOLVE_BENEATH
        fd = libc.syscall(437, folder, b"source", how, 24)
        print("ENOSYS" if ctypes.get_errno() == 38 else os.read(fd, 99).decode(), list(how))
        """
    )
    if "ENOSYS" in subprocess.run(program, check=True, capture_output=True, text=True).stdout:
        pytest.skip("the kernel has no openat2")
    assert run(redirect(source, target), tmp_path, *program).stdout == "other [0, 0, 8]\n"


@pytest.mark.parametrize("table", ["/proc/self/mountinfo", "/proc/thread-self/mountinfo", "/proc/mounts"])
def test_mount_tables_are_rewritten(table: str, tmp_path: Path) -> None:
    rules = '[[mount]]\ntype="proc"\nnew_type="changed"\nsource="over here"\noptions="{controller},x"\n'
    done = run(rules, tmp_path, "cat", table)
    plain = Path(table).read_text().splitlines()
    lines = [line for line in done.stdout.splitlines() if "changed" in line]
    assert lines
    assert all("over\\040here" in line for line in lines)
    assert any("proc,x" in line for line in lines)
    # All other lines as the kernel has them, in their order.
    assert [line for line in done.stdout.splitlines() if line not in lines] == [
        line for line in plain if not (" - proc " in line or line.split()[2] == "proc")
    ]


def test_mount_tables_stay_the_kernels_in_another_root(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("busybox") is None:
        pytest.skip("chroot needs root, and busybox needs to be there")
    root = tmp_path / "root"
    for name in ("proc", "bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    script = f"mount -t proc proc {root}/proc && exec chroot {root} /bin/busybox cat /proc/self/mountinfo"
    rules = '[[mount]]\ntype="*"\nnew_type="changed"\n'
    done = run(rules, tmp_path, "unshare", "--mount", "sh", "-c", script)
    assert "changed" not in done.stdout
    assert " - proc " in done.stdout
