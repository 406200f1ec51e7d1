"""Code that nobody vouches for: it ends, takes what it may, sees nothing, leaves nothing."""

import os
import socket
import time
import uuid
from pathlib import Path

import pytest

from stillroom.core import Failure
from stillroom.traces import sandbox
from stillroom.traces.sandbox import Limits, run_python
from stillroom.traces.syscalls import filtered


def _why_not() -> str:
    try:
        sandbox.permitted()
    except Failure as failure:
        return str(failure)
    return ""


boxed = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "it is permitted")


@pytest.fixture
def mark(monkeypatch, tmp_path) -> str:
    """A word in the command line of all that runs inside."""
    word, runner = f"mark-{uuid.uuid4()}", tmp_path / "runner.py"
    runner.write_text(f"{sandbox.RUNNER.read_text()}\n# {word}\n")
    monkeypatch.setattr(sandbox, "RUNNER", runner)
    return word


def living(mark: str) -> list[str]:
    """Processes of the host whose command line holds the mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told = place.read_bytes()
        except OSError:
            continue
        if mark.encode() in told:
            found.append(place.parent.name)
    return found


@boxed
def test_code_and_tests_run_in_the_same_names():
    code = "def double(x):\n    print('called')\n    return 2 * x"
    ran = run_python(code, "assert double(2) == 4")
    assert (ran.passed, ran.why, ran.output.strip()) == (True, "passed", "called")
    assert "AssertionError" in run_python(code, "assert double(2) == 5").why
    assert run_python("import math, re, json, decimal, collections, itertools, datetime").passed
    assert "SyntaxError" in run_python("def f(:").why


@boxed
@pytest.mark.parametrize(
    "code",
    ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "exit()"],
)
def test_code_that_ends_before_the_tests_has_not_passed(code):
    ran = run_python(code, "assert False")
    assert (ran.passed, ran.why) == (False, "ended before the tests did")


BOMBS = {
    "endless loop": ("while True: pass", "took more than 1 s"),
    "endless sleep": ("import time\nwhile True: time.sleep(9)", "took more than 1 s"),
    "deaf to signals": (
        "import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "took more than 1 s",
    ),
    "fork bomb": ("import os\nwhile True: os.fork()", "BlockingIOError"),
    "patient fork bomb": (
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "took more than 1 s",
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    for fd in (0, 1, 2): os.close(fd)\n    time.sleep(60)\n  os._exit(0)\nos._exit(0)",
        "ended before",
    ),
    "threads": (
        "import threading, time\n"
        "for _ in range(99):\n"
        "  threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "can't start new thread",
    ),
    "10 GB": ("x = bytearray(10 * 2**30)", "MemoryError"),
    "10 GB bit by bit": ("x = []\nwhile True: x.append(bytearray(2**20))", "MemoryError"),
    "full disk": (
        "for i in range(99): open(f'{i}', 'wb').write(bytes(2**20))",
        "No space left on device",
    ),
    "large file": ("f = open('a', 'wb')\nwhile True: f.write(bytes(2**20))", ""),
    "memory file": ("import os\nos.memfd_create('a')", "Operation not permitted"),
    "endless output": ("while True: print('x' * 1000)", "printed more than 64 KiB"),
    "endless errors": (
        "import os\nwhile True: os.write(2, b'x' * 1000)",
        "printed more than 64 KiB",
    ),
    "many files": ("x = [open('/dev/null') for _ in range(999)]", "Too many open files"),
}


@boxed
@pytest.mark.parametrize("name", BOMBS)
def test_what_takes_too_much_is_stopped_and_nothing_is_left(name, mark):
    code, why = BOMBS[name]
    start = time.monotonic()
    seconds = 1.0 if "1 s" in why else 30.0  # the others end by what they may take, in their time
    ran = run_python(code, "", Limits(seconds=seconds, disk_mb=4, memory_mb=128))
    assert not ran.passed
    assert why in ran.why
    assert len(ran.output) <= 64 * 1024
    assert time.monotonic() - start < seconds + 5
    assert living(mark) == []


@boxed
def test_a_program_that_runs_is_seen_by_what_looks_for_rests(monkeypatch, mark):
    seen = []
    true = sandbox._read

    def read(stream, end, limits):
        time.sleep(0.5)
        seen.extend(living(mark))
        return true(stream, end, limits)

    monkeypatch.setattr(sandbox, "_read", read)
    run_python("import time; time.sleep(9)", "", Limits(seconds=1.0))
    assert seen
    assert living(mark) == []


@boxed
def test_files_of_the_host_are_neither_read_nor_written(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the word is plum")
    out = tmp_path / "out.txt"
    told = Path.home() / "x.txt"
    for code in (
        f"print(open({str(secret)!r}).read())",
        f"open({str(out)!r}, 'w').write('x')",
        f"open({str(told)!r}, 'w').write('x')",
        "open('/etc/passwd').read()",
        "open('/x', 'w').write('x')",
        "open('/dev/shm/x', 'w').write('x')",
        "open('/python/lib/x', 'w').write('x')",
        "open('/usr/lib/x', 'w').write('x')",
        f"import os; os.listdir({str(Path(__file__).parents[2])!r})",
        "import os; os.listdir('/proc')",
        "import os; os.listdir('/root')",
        "import os; os.listdir('/home')",
    ):
        ran = run_python(code)
        assert not ran.passed, code
        assert "plum" not in ran.output
        assert "Error" in ran.why
    assert not out.exists()
    assert not told.exists()
    assert [f.name for f in tmp_path.iterdir()] == ["secret.txt"]


@boxed
def test_what_was_told_is_not_read_again():
    code = "import os\nos.lseek(0, 0, 0)\nprint(os.read(0, 10**6))"
    assert "word" not in run_python(code).output
    assert run_python("import os\nassert sorted(os.listdir('.')) == []").passed
    seen = run_python(
        "import os\nfor fd in range(3, 64):\n  try: os.fstat(fd); print(fd)\n  except OSError: pass"
    )
    assert (seen.passed, seen.output.strip()) == (True, "")


@boxed
def test_one_run_leaves_nothing_for_the_next():
    assert run_python("open('/tmp/a', 'w').write('x')").passed
    assert "FileNotFoundError" in run_python("open('/tmp/a')").why


@boxed
def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # the host reaches it
        server.accept()[0].close()
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert "refused" in run_python(code).why
        with pytest.raises(TimeoutError):
            server.accept()
    names = "import socket\nassert [n for _, n in socket.if_nameindex()] == ['lo']"
    assert run_python(names).passed


@boxed
def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-plum")
    assert run_python("import os\nassert not os.environ, os.environ").passed
    code = "import subprocess as s\nprint(s.run(['/python/bin/python', '-c', "
    code += "'import os; print(os.environ)'], capture_output=True, env={}))"
    assert "plum" not in run_python(code).output


@boxed
def test_code_is_not_root_and_makes_no_namespaces():
    code = """
import ctypes, os
assert os.getuid() != 0
kernel = ctypes.CDLL(None, use_errno=True)
for call in (kernel.unshare, ):
    for flag in (0x10000000, 0x20000, 0x40000000):
        assert call(flag) == -1 and ctypes.get_errno() == 1
try:
    os.setuid(0)
except PermissionError:
    pass
else:
    raise AssertionError
"""
    assert run_python(code).why == "passed"


def test_without_bwrap_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "permitted", sandbox.permitted.__wrapped__)
    mark = tmp_path / "ran"
    with pytest.raises(Failure, match=r"no 'bwrap' on the PATH: install it \(apt-get install"):
        run_python(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()


def test_bwrap_that_is_not_permitted_is_told_and_nothing_runs(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "permitted", sandbox.permitted.__wrapped__)
    with pytest.raises(Failure, match=r"does not work here .*No permissions to create new namesp"):
        run_python("x = 1")


def test_the_filter_is_whole_instructions_and_unknown_machines_are_refused():
    for machine in ("x86_64", "aarch64"):
        assert len(filtered(machine)) % 8 == 0
    with pytest.raises(Failure, match="this machine is vax"):
        filtered("vax")
