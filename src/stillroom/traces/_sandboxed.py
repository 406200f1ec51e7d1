"""Runs inside the sandbox: bounds itself, runs code, then tests, then says the word."""

import json
import os
import resource
import sys


def _bound(told):
    if told["uid"] is not None:  # root has no bound on processes, and rights over files
        os.setgroups([])
        os.setgid(told["uid"])
        os.setuid(told["uid"])
    for what, most in {
        resource.RLIMIT_AS: told["memory_mb"] * 2**20,
        resource.RLIMIT_CPU: told["cpu_seconds"],
        resource.RLIMIT_FSIZE: told["disk_mb"] * 2**20,
        resource.RLIMIT_NOFILE: told["files"],
        resource.RLIMIT_NPROC: told["processes"],
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(what, (most, most))


def _main():
    told = json.load(sys.stdin)
    os.close(0)  # what was told could be read again
    os.open(os.devnull, os.O_RDONLY)  # takes the place that is free
    _bound(told)
    os.environ.clear()
    names = {"__name__": "answer"}
    exec(compile(told["code"], "answer.py", "exec"), names)
    exec(compile(told["tests"], "tests.py", "exec"), names)
    sys.stdout.write("\n" + told["word"] + "\n")


if __name__ == "__main__":  # as a program alone; importing does nothing
    _main()
