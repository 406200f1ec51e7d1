"""What sandboxed code may not ask of the kernel: a filter in the form that ``bwrap`` takes.

A new user namespace makes its maker root over fresh file systems, whose memory no limit of the
sandbox counts. Those calls, and a few that serve no program under test, fail with EPERM.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator

from stillroom.failures import Failure

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the kernel's ``linux/audit.h``."""
REFUSED = {
    "x86_64": {
        "unshare": 272, "setns": 308, "mount": 165, "memfd_create": 319, "ptrace": 101,
        "bpf": 321, "io_uring_setup": 425, "add_key": 248, "keyctl": 250, "perf_event_open": 298,
        "shmget": 29, "userfaultfd": 323,
    },
    "aarch64": {
        "unshare": 97, "setns": 268, "mount": 40, "memfd_create": 279, "ptrace": 117,
        "bpf": 280, "io_uring_setup": 425, "add_key": 217, "keyctl": 219, "perf_event_open": 241,
        "shmget": 194, "userfaultfd": 282,
    },
}  # fmt: skip
"""Numbers of the kernel's tables of calls. memfd and shmget make memory that no limit counts."""
CLONE, CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
NAMESPACES = 0x7E020000
"""All CLONE_NEW flags of ``linux/sched.h`` but the one of time, which clone does not take."""
X32 = 0x40000000
"""Where x86_64's second table begins, whose numbers would slip through."""
_LOAD, _EQUAL, _AT_LEAST, _ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_NUMBER, _ARCH, _FLAGS = 0, 4, 16
"""Places in ``seccomp_data``; flags are the low half of the first argument (little-endian)."""


def filtered(machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``, for ``bwrap --seccomp``.

    ``clone3`` is told to be unknown, since its flags lie where a filter cannot look; callers then
    use ``clone``, whose flags are looked at.

    Raises:
        Failure: the numbers of this machine's calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHES:
        raise Failure(
            f"verify: code is sandboxed on {' and '.join(ARCHES)}, and this machine is {machine}"
        )
    return b"".join(struct.pack("=HBBI", *step) for step in _steps(machine))


def _steps(machine: str) -> Iterator[tuple[int, int, int, int]]:
    yield _LOAD, 0, 0, _ARCH
    yield _EQUAL, 1, 0, ARCHES[machine]
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, X32
        yield _RETURN, 0, 0, _EPERM
    for number in REFUSED[machine].values():
        yield _EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _EPERM
    yield _EQUAL, 0, 1, CLONE3
    yield _RETURN, 0, 0, _ENOSYS
    yield _EQUAL, 0, 3, CLONE[machine]
    yield _LOAD, 0, 0, _FLAGS
    yield _ANY, 0, 1, NAMESPACES
    yield _RETURN, 0, 0, _EPERM
    yield _RETURN, 0, 0, _ALLOW
