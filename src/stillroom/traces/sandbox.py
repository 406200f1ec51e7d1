"""Python that nobody vouches for, run under bubblewrap (``bwrap``) within bounds, or not at all.

What the sandbox is: no network; of the host's files the interpreter, its library and the system's
shared libraries, to be read; an empty folder in memory, of limited size, to be written; own
process, IPC, host name and cgroup namespaces; no variable of the environment; no right of root.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

from annotated_types import Ge, Gt

from stillroom.failures import Failure
from stillroom.traces.syscalls import filtered

MIB = 2**20
UIDS = range(62_000, 65_000)
"""Users that root becomes inside, at random: whom no file belongs to, and whose processes the
kernel counts (those of root it does not)."""
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
RUNNER = Path(__file__).with_name("_sandboxed.py")
"""What runs inside: no module of ours, a script that is sent there."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may take, before it is stopped.

    Args:
        seconds: of the clock, for all of it.
        cpu_seconds: of a process.
        memory_mb: MiB of addresses of a process; all of them together may take ``processes`` times
            as much.
        disk_mb: MiB of the folder that it may write to, which lies in memory.
        output_kb: KiB that it may print, both streams together.
        processes: at once, threads counted.
        files: open in a process at once.
    """

    seconds: Annotated[float, Gt(0)] = 10.0
    cpu_seconds: Annotated[int, Ge(1)] = 10
    memory_mb: Annotated[int, Ge(64)] = 512
    disk_mb: Annotated[int, Ge(1)] = 16
    output_kb: Annotated[int, Ge(1)] = 64
    processes: Annotated[int, Ge(1)] = 8
    files: Annotated[int, Ge(8)] = 64


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a run ended: whether code and tests came to their end, what was printed, and why not."""

    passed: bool
    output: str
    why: str


def run_python(code: str, tests: str = "", limits: Limits | None = None) -> Ran:
    """Runs code, then tests in the same names; passed if neither raises and the end is reached.

    Code that ends the program early has not passed. The proof of the end is a random word that is
    printed behind the tests; code that searches the interpreter's own frames for it could cheat,
    and is still shut in.

    Raises:
        Failure: there is no ``bwrap``, or it is not permitted here; nothing is run then.
    """
    limits = limits or Limits()
    bwrap = permitted()
    word = secrets.token_hex(16)
    uid = secrets.choice(UIDS) if os.geteuid() == 0 else None
    told = {"code": code, "tests": tests, "word": word, "uid": uid, **vars(limits)}
    output, why = _bounded(bwrap, json.dumps(told).encode(), limits)
    text = output.decode("utf-8", "replace")
    if why is None and text.endswith(f"\n{word}\n"):
        return Ran(passed=True, output=text.removesuffix(f"\n{word}\n"), why="passed")
    return Ran(passed=False, output=text, why=why or _last(text))


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return f"failed: {lines[-1]:.200}" if lines else "ended before the tests did"


@functools.cache
def permitted() -> str:
    """The path of ``bwrap``, once a sandbox with all bounds has run a first program.

    Raises:
        Failure: it is missing or not permitted, and how to get it.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None or not sys.platform.startswith("linux"):
        raise Failure(
            "verify: code of a model is run under bubblewrap alone, and there is no 'bwrap' on the "
            "PATH: install it (apt-get install bubblewrap, dnf install bubblewrap; Linux only), "
            "or verify on a machine that has it"
        )
    uid = UIDS[0] if os.geteuid() == 0 else None
    told = {"code": "", "tests": "", "word": "works", "uid": uid, **vars(Limits())}
    output, why = _bounded(bwrap, json.dumps(told).encode(), Limits(seconds=60))
    if why or not output.endswith(b"\nworks\n"):
        said = output.decode("utf-8", "replace").strip()[-300:]
        raise Failure(
            f"verify: code of a model is run under bubblewrap alone, and {bwrap} does not work "
            f"here ({why or said or 'it said nothing'}): it must be 0.8 or later, and be permitted "
            "to make namespaces (sysctl user.max_user_namespaces; AppArmor; in a container "
            "--security-opt seccomp=unconfined), or run as root"
        )
    return bwrap


def _command(bwrap: str, info: int, calls: int, limits: Limits) -> list[str]:
    home, place = Path(sys.base_prefix), "/python"
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    binds: list[str] = []
    for told in ("/usr", place, f"{place}/bin"):  # else nobody but their maker may look into them
        binds += ["--perms", "0755", "--dir", told]
    for told in LIBRARIES:
        if Path(told).is_symlink():
            binds += ["--symlink", os.readlink(told), told]
        elif Path(told).is_dir():
            binds += ["--ro-bind", told, told]
    binds += ["--ro-bind", str(python), f"{place}/bin/python"]
    for told in ("lib", "lib64"):
        if (home / told).is_dir():
            binds += ["--ro-bind", str((home / told).resolve()), f"{place}/{told}"]
    own = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    own = own if os.geteuid() == 0 else ["--unshare-user"]
    return [
        *(bwrap, "--die-with-parent", "--new-session", *own, "--unshare-net", "--unshare-pid"),
        *("--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"),
        *("--clearenv", "--setenv", "LD_LIBRARY_PATH", f"{place}/lib", *binds, "--dev", "/dev"),
        *("--perms", "1777", "--size", str(limits.disk_mb * MIB), "--tmpfs", "/tmp"),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
        *("--info-fd", str(info), "--seccomp", str(calls)),
        *(f"{place}/bin/python", "-I", "-B", "-u", "-X", "utf8", "-c", RUNNER.read_text("utf-8")),
    ]


def _bounded(bwrap: str, told: bytes, limits: Limits) -> tuple[bytes, str | None]:
    """What a run printed, and why it was stopped; every process of it is gone on return."""
    end = time.monotonic() + limits.seconds
    with ExitStack() as open_:
        sent, calls = (open_.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        sent.write(told)
        calls.write(filtered())
        for file in (sent, calls):
            file.seek(0)
        ours, theirs = os.pipe()
        info = open_.enter_context(os.fdopen(ours, "rb"))
        process = open_.enter_context(
            subprocess.Popen(
                _command(bwrap, theirs, calls.fileno(), limits),
                stdin=sent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={},
                pass_fds=(theirs, calls.fileno()),
            )
        )
        os.close(theirs)
        assert process.stdout is not None
        first = _first(info)
        try:
            return _read(process.stdout, end, limits)
        finally:
            _kill(process, first)


def _read(stream: IO[bytes], end: float, limits: Limits) -> tuple[bytes, str | None]:
    found = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        if not (part := os.read(stream.fileno(), 65536)):
            return found, None
        found += part
        if len(found) > limits.output_kb * 1024:
            return found[: limits.output_kb * 1024], f"printed more than {limits.output_kb} KiB"
    return found, f"took more than {limits.seconds:g} s"


def _first(info: IO[bytes]) -> int | None:
    """A handle on the first process inside, with which all others end; None if there was none."""
    try:
        return os.pidfd_open(json.loads(info.read())["child-pid"])
    except (ValueError, KeyError, OSError):  # bwrap gave up, or it is over by now
        return None


def _kill(process: subprocess.Popen[bytes], first: int | None) -> None:
    """The kernel ends a pid namespace with its first process, and tells once all are gone."""
    if first is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        select.select([first], [], [])
        os.close(first)
    process.kill()
    process.wait()
