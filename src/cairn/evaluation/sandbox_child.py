"""What runs inside the sandbox: puts limits on this very process, and then runs the code that it was given.

    stdin: code, limits, mark ──> limits of the kernel ──> filter of system calls ──> Python's own hook ──> exec(code)
    pipe:  "ready", what is in force ──────────────────────────────────────────────> outcome, with the mark

Started by `sandbox.run_code` as a script of its own (`python -I -B sandbox_child.py FD`); it imports the standard
library only. The mark, known to this file alone, tells an outcome that was reached from one that the code wrote itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]

_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_EPERM, _ENOSYS = 1, 38
_THREAD = 0x00010000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# What a solved exercise never needs: other processes, the network, changes to files or to the machine.
# (name, number on x86_64, number on aarch64; None where it does not exist)
_DENIED: tuple[tuple[str, int | None, int | None], ...] = (
    ("fork", 57, None), ("vfork", 58, None), ("execve", 59, 221), ("execveat", 322, 281), ("socket", 41, 198),
    ("io_uring_setup", 425, 425), ("kill", 62, 129), ("tkill", 200, 130), ("rt_sigqueueinfo", 129, 138),
    ("rt_tgsigqueueinfo", 297, 240), ("pidfd_send_signal", 424, 424), ("ptrace", 101, 117),
    ("process_vm_writev", 311, 271), ("creat", 85, None), ("unlink", 87, None), ("unlinkat", 263, 35),
    ("rename", 82, None), ("renameat", 264, 38), ("renameat2", 316, 276), ("rmdir", 84, None), ("mkdir", 83, None),
    ("mkdirat", 258, 34), ("mknod", 133, None), ("mknodat", 259, 33), ("link", 86, None), ("linkat", 265, 37),
    ("symlink", 88, None), ("symlinkat", 266, 36), ("truncate", 76, 45), ("chmod", 90, None), ("fchmodat", 268, 53),
    ("fchmodat2", 452, 452), ("chown", 92, None), ("lchown", 94, None), ("fchownat", 260, 54), ("utime", 132, None),
    ("utimes", 235, None), ("utimensat", 280, 88), ("futimesat", 261, None), ("setxattr", 188, 5),
    ("lsetxattr", 189, 6), ("removexattr", 197, 14), ("lremovexattr", 198, 15), ("mount", 165, 40),
    ("umount2", 166, 39), ("pivot_root", 155, 41), ("chroot", 161, 51), ("unshare", 272, 97), ("setns", 308, 268),
    ("memfd_create", 319, 279), ("shmget", 29, 194), ("bpf", 321, 280), ("keyctl", 250, 219), ("add_key", 248, 217),
    ("perf_event_open", 298, 241),
)  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _OPEN, _OPENAT, _OPENAT2, _TGKILL = (56, 220), 435, (2, None), (257, 56), 437, (234, 131)

_FORBIDDEN_EVENTS = (
    "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile", "subprocess.Popen",
    "pty.spawn", "socket.", "ctypes.", "os.kill", "os.killpg", "signal.pthread_kill", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link", "os.symlink", "os.utime", "os.setxattr",
    "os.removexattr", "shutil.", "tempfile.", "sqlite3.", "resource.", "urllib.Request", "http.client.", "ftplib.",
    "smtplib.",
)  # fmt: skip


def _no_network() -> bool:
    """Moves this process into a network of its own that has no device up; False if that is not permitted."""
    if not sys.platform.startswith("linux"):
        return False
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is None:
        return False
    apart = _NEW_NET | _NEW_IPC
    return (os.geteuid() == 0 and unshare(apart) == 0) or unshare(apart | _NEW_USER) == 0


def _filter_calls() -> bool:
    """Asks the kernel to refuse the calls above from now on; False if it cannot."""
    column, arch = _MACHINES.get(platform.machine(), (0, 0))
    if not sys.platform.startswith("linux") or not arch or struct.calcsize("P") != 8:
        return False
    program = b"".join(struct.pack("HBBI", *step) for step in _program(column, arch))
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    whole = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    return prctl(_NO_NEW_PRIVS, 1, None, 0, 0) == 0 and prctl(_SET_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0) == 0


def _program(column: int, arch: int) -> list[tuple[int, int, int, int]]:
    """Returns the filter in the kernel's own small language: (operation, jump if true, jump if false, operand)."""
    refuse = (_RETURN, 0, 0, _ERRNO | _EPERM)
    missing = (_RETURN, 0, 0, _ERRNO | _ENOSYS)
    allow = (_RETURN, 0, 0, _ALLOW)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), refuse, (_LOAD, 0, 0, 0)]
    if column == 0:  # the second numbering of x86_64 would be a way around
        steps += [(_AT_LEAST, 0, 1, 0x40000000), refuse]
    for number in (row[1 + column] for row in _DENIED):
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), refuse]
    for number in (_CLONE3, _OPENAT2):  # their flags lie in memory, out of sight: the C library takes the older call
        steps += [(_EQUAL, 0, 1, number), missing]
    for number, argument in ((_OPEN[column], 1), (_OPENAT[column], 2)):
        if number is not None:
            steps += _if_argument(number, argument, (_ANY_BIT, 0, 1, _WRITES), refuse, allow)
    steps += _if_argument(_CLONE[column], 0, (_ANY_BIT, 0, 1, _THREAD), allow, refuse)
    steps += _if_argument(_TGKILL[column], 0, (_EQUAL, 0, 1, os.getpid()), allow, refuse)
    return [*steps, allow]


def _if_argument(
    number: int, argument: int, test: tuple[int, int, int, int], then: tuple, otherwise: tuple
) -> list[tuple[int, int, int, int]]:
    """Returns: of call `number`, look at the low half of an argument and return one way or the other."""
    return [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument), test, then, otherwise]


def _limit(memory_bytes: int, seconds: float, file_bytes: int) -> None:
    """Sets the kernel's limits: none can be raised again."""
    wanted = {
        "RLIMIT_AS": memory_bytes, "RLIMIT_DATA": memory_bytes, "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_FSIZE": file_bytes, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }  # fmt: skip
    for name, value in wanted.items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (ValueError, OSError):  # macOS knows RLIMIT_AS, but does not take it
            continue


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuses what a solved exercise never needs, with a message; the kernel's filter is the wall behind it."""
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 else 0
        if isinstance(flags, int) and flags & _WRITES:
            raise PermissionError(f"the sandbox writes no files: {arguments[0]!r}")
    elif event.startswith(_FORBIDDEN_EVENTS):
        raise PermissionError(f"not allowed in the sandbox: {event}")


def _say(pipe: int, message: Any) -> None:
    os.write(pipe, (json.dumps(message) + "\n").encode())


def _outcome(code: str) -> tuple[str, str]:
    """Runs the code; returns (outcome, what was raised)."""
    try:
        exec(compile(code, "generated.py", "exec"), {"__name__": "generated"})
    except MemoryError:
        return "memory", "MemoryError"
    except SystemExit as error:
        return "exited", f"SystemExit({error.code!r}) before the tests were over"
    except BaseException as error:
        try:
            text = f"{type(error).__name__}: {error}"
        except BaseException:  # an exception of the code's own may raise in its __str__
            text = type(error).__name__
        return "failed", text[:300]
    return "passed", ""


def _layers(kernel: bool, memory_bytes: int, seconds: float, file_bytes: int) -> list[str]:
    """Puts every limit in force that this system has; returns their names."""
    names = []
    if kernel and _no_network():
        names.append("network namespace")
    _limit(memory_bytes, seconds, file_bytes)
    names.append("rlimits")
    if kernel and _filter_calls():
        names.append("seccomp")
    sys.addaudithook(_hook)
    return [*names, "audit hook"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads one job from stdin, runs it, and writes "ready" and the outcome to the pipe whose number it is given."""
    pipe = int((sys.argv[1:] if arguments is None else arguments)[0])
    job = json.loads(sys.stdin.buffer.read())
    sys.argv = ["generated.py"]
    mark, code = job["mark"], job["code"]
    names = _layers(job["kernel"], job["memory_bytes"], job["seconds"], job["file_bytes"])
    _say(pipe, {"mark": mark, "layers": names})
    outcome, raised = _outcome(code)
    _say(pipe, {"mark": mark, "outcome": outcome, "raised": raised})
    os._exit(0)  # no exit handlers, no threads of the code's own


if __name__ == "__main__":
    main()
