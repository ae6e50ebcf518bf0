"""Ways to end, slow or fool the process that runs the sandbox; it is the parent of every program."""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

from attack_cases import Attack

SIGNALS = {
    "interrupt it": Attack("os.kill(os.getppid(), signal.SIGINT)", "local"),
    "interrupt its thread": Attack("call(234, os.getppid(), os.getppid(), 2)", "local"),
    "interrupt it by a descriptor": Attack("signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 2)", "local"),
    "queue an interrupt": Attack("b = ctypes.create_string_buffer(128)\nstruct.pack_into('iii', b, 0, 2, 0, -1)\ncall(129, os.getppid(), 2, b)", "local"),
    "interrupt everybody": Attack("signal.signal(2, signal.SIG_IGN); os.kill(-1, 2)"),
    "have the kernel interrupt it": Attack(
        "a, b = socket.socketpair()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid()); fcntl.fcntl(a, 10, 2)\n"
        "fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)\nb.send(b'x')",
        "local",
    ),
    "send it every signal": Attack("for n in range(1, 65): os.kill(os.getppid(), n)"),
    "send it every signal many times": Attack("for n in [*range(1, 65)] * 200: os.kill(os.getppid(), n)"),
    "give it a child that ends with an interrupt": Attack("pid = libc.syscall(56, 2, 0, 0, 0, 0)\nif pid == 0:\n    if libc.syscall(56, 0x8000 | 2, 0, 0, 0, 0) == 0: time.sleep(0.05)\n    os._exit(0)"),
    "leave it a child that ends with a signal": Attack("if os.fork() == 0:\n    if os.fork() == 0: time.sleep(0.05); os.kill(os.getpid(), 9)\n    os._exit(0)"),
}  # fmt: skip
"""Afterwards it must answer. Without process 1's deafness (no sandbox) it does not."""

SLOWING = {
    "slow all of one's user": Attack("before = os.getpriority(0, os.getppid())\nwith contextlib.suppress(OSError): os.setpriority(2, 0, 5)\nsay(os.getpriority(0, os.getppid()) != before)", "filter"),
    "slow one's own user by number": Attack("before = os.getpriority(0, os.getppid())\nwith contextlib.suppress(OSError): os.setpriority(2, os.getuid(), 10)\nsay(os.getpriority(0, os.getppid()) != before)", "filter"),
    "slow the disk of one's user": Attack("say(call(251, 3, os.getuid(), 3 << 13)[0] == 0)", "filter"),
    "slow it by high bits": Attack("say(call(141, 1 << 32, 1 << 32 | 1, 19)[0] == 0)", "filter"),
    "let it sleep longer": Attack("say(works(lambda: os.write(os.open('/proc/%d/timerslack_ns' % os.getppid(), os.O_WRONLY), b'1000000000')))", "local"),
    "write to anything that is its": Attack(
        "def write(path):\n    fd = os.open(path, os.O_WRONLY)\n    os.write(fd, b'1')\n"
        "say(any(works(lambda p=p: write(p)) for p in glob.glob('/proc/%d/*' % os.getppid())"
        " if os.path.basename(p) in ('comm', 'oom_score_adj', 'oom_adj', 'clear_refs', 'coredump_filter', 'autogroup', 'uid_map', 'gid_map', 'setgroups', 'mem', 'loginuid', 'make-it-fail')))"
    ),
    "change its limits": Attack("say(works(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))))", "filter"),
}  # fmt: skip

FOOLING = {
    "a program that says nothing and never ends": ("bash", "exec >&- 2>&- <&-; while :; do :; done", {"timeout"}),
    "a program that stops itself": ("bash", "kill -STOP $$", {"timeout"}),
    "a program that stops everybody": ("bash", "kill -STOP -1; kill -STOP $$", {"timeout"}),
    "a program that reads its own output": ("python", "f = open('/proc/self/fd/1', 'rb')\nwhile True: os.write(1, b'x'); f.read(1)", {"timeout", "output"}),
    "a program that writes its own input": ("python", "f = os.open('/proc/self/fd/0', os.O_WRONLY)\nos.write(f, b'x')", {None}),
    "a tiny pipe for output": ("python", "fcntl.fcntl(1, 1031, 4096); fcntl.fcntl(1, fcntl.F_SETFL, 0); os.write(1, bytes(10**5))", {None}),
    "output that is not waited for": ("python", "fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)\nwhile True:\n    with contextlib.suppress(OSError): os.write(1, b'x' * 65536)", {"output"}),
    "a storm of refused calls": ("python", "for _ in range(4): os.fork()\nwhile True: call(101, 0, 0, 0, 0)", {"timeout", "cpu"}),
    "frames to every descriptor": ("python", "for n in range(3, 1000):\n    for frame in (b'\\0\\0\\0\\2{}', b'\\xff' * 64):\n        with contextlib.suppress(OSError): os.write(n, frame)", {None}),
    "frames to every descriptor of everybody": ("python", "for p in glob.glob('/proc/[0-9]*/fd/*'):\n    with contextlib.suppress(OSError): os.write(os.open(p, os.O_WRONLY | os.O_NONBLOCK), b'\\0\\0\\0\\2{}')", {None}),
    "a command too long for the kernel": ("bash", "true " + "x" * 200_000, {"failed_to_start"}),
    "a name too long for the kernel": ("run", "/" + "x" * 5000, {"failed_to_start"}),
    "a folder as a program": ("run", "/usr", {"failed_to_start"}),
    "a program that is no program": ("run", "/etc/passwd", {"failed_to_start"}),
    "a crash": ("python", "ctypes.string_at(8)", {None}),
    "a crash of many": ("python", "for _ in range(4): os.fork()\nos.abort()", {None}),
    "modules of Python in the workspace": (
        "bash", "for m in json os re binascii select struct importlib ast encodings hashlib stat; do echo 'raise SystemExit(9)' > $m.py; done", {None},
    ),
}  # fmt: skip
"""Whatever they do, the next call is answered; which causes are honest."""
