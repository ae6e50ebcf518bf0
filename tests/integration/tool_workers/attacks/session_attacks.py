"""Ways to spoil the session's long-lived shell and interpreter, and to go on when a call is over."""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

SHELL = {
    "functions in place of its commands": "read() { :; }; eval() { :; }; printf() { :; }; disown() { :; }; builtin() { :; }",
    "aliases": "shopt -s expand_aliases; alias builtin=true eval=true printf=true while=true",
    "no more builtins": "enable -n eval printf read disown",
    "a trap before each command": "trap 'echo trapped' DEBUG",
    "a trap that skips commands": "shopt -s extdebug; trap 'false' DEBUG",
    "a trap that leaves": "trap 'exit 3' DEBUG",
    "traps of its end": "trap 'while :; do :; done' EXIT; exit 1",
    "traps of signals": "trap '' TERM HUP INT CONT TSTP; trap 'exec sleep 600' CHLD",
    "constants in place of its variables": "readonly __rollstream_code=1 __rollstream_word=x __rollstream_command=:",
    "its command line": "IFS=0123456789; PS1=x; PS4=$(:); PROMPT_COMMAND='exit 3'",
    "no commands at all": "set -n",
    "another mode": "set -o posix; set -euo pipefail; set -f -u -x -v",
    "closing what it reads": "exec 3<&-",
    "closing what it writes": "exec 4>&-",
    "other ends": "exec 3</dev/null 4>/dev/null",
    "endless ends": "exec 3</dev/zero",
    "no descriptors": "ulimit -n 3",
    "no processes": "ulimit -u 1",
    "no memory": "ulimit -v 1000",
    "no files": "ulimit -f 0; ulimit -c 0; ulimit -t 1",
    "stopping itself": "kill -STOP $$",
    "going away": "exec sleep 600",
    "a loop that is not its own": "break 5; continue 5; return 3",
    "a folder that is gone": "mkdir gone; cd gone; rmdir $PWD",
    "an endless text": "cat <<EOF\n" + "x" * 1000,
    "a word of its own": "for n in {1..50}; do echo 'deadbeef 0' >&4; done 2>/dev/null",
    "deep recursion": "f() { f; }; f",
    "no path": "unset PATH HOME; PATH=; BASH_ENV=/dev/zero ENV=/dev/zero",
}  # fmt: skip
"""Afterwards it works, or has been started anew."""

INTERPRETER = {
    "functions in place of its own": "import builtins\nbuiltins.exec = builtins.compile = builtins.eval = builtins.open = None",
    "no functions at all": "import builtins\nbuiltins.__dict__.clear()",
    "no modules at all": "import sys\nsys.modules.clear(); sys.path.clear()",
    "another parser": "import ast\nast.parse = lambda *a: 1 / 0",
    "another system": "import os\nos.write = os.getpid = os._exit = lambda *a: None",
    "watching each line": "import sys\ndef t(*a): raise SystemExit(3)\nsys.settrace(t); sys.setprofile(t)",
    "hooks": "import sys\nsys.excepthook = sys.displayhook = lambda *a: 1 / 0\nsys.addaudithook(lambda *a: 1 / 0)",
    "no streams": "import sys\nsys.stdout.close(); sys.stderr = None",
    "no descriptors": "import os\nos.closerange(0, 300)",
    "other ends": "import os\nf = os.open('/dev/null', os.O_RDWR)\nfor n in range(10): os.dup2(f, n)",
    "reading its own commands": "import os\nos.read(3, 10**6)",
    "commands of its own": "import os\nos.write(os.open('/proc/self/fd/3', os.O_WRONLY), b'x' * 32 + b'\\0print(1)\\0' * 100)",
    "reading its own end": "import os, threading\nf = open('/proc/self/fd/4', 'rb')\nthreading.Thread(target=f.read, daemon=True).start()",
    "the word in its frame": "import sys, os\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nos.write(4, (str(f.f_locals.get('word')) + ' 0\\0').encode() * 3)",
    "an alarm without end": "import signal\ndef late(*a): raise MemoryError\nsignal.signal(14, late); signal.setitimer(0, 0.001, 0.001)",
    "objects that never end": "class A:\n    def __del__(self):\n        while True: pass\na = A()\ndel a",
    "a value that cannot be shown": "class A:\n    def __repr__(self): raise SystemExit(5)\nA()",
    "a value that is long to show": "[0] * 10**7",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "deep text": "eval('(' * 10**5)",
    "an error that lies": "class E(BaseException):\n    __traceback__ = None\n    def __str__(self): raise E\nraise E",
    "ending in a thread": "import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()",
    "ending its first thread": "import ctypes\nctypes.CDLL(None).syscall(60, 0)",
    "a fork that goes on": "import os\nif os.fork() == 0:\n    while True: pass",
    "a fork that ends first": "import os\nos.fork(); os._exit(0)",
    "names that are its own": "__name__ = __builtins__ = __doc__ = None",
    "text of no encoding": "print('\\ud800\\udfff')\n'\\ud800'",
}  # fmt: skip
"""Afterwards it works, has been started anew, or says what is wrong; a restart always helps."""

LEFT_RUNNING = {
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    run()",
    "a process whose first thread has ended": (
        "if os.fork() == 0:\n    os.setsid(); threading.Thread(target=run).start(); time.sleep(0.05); call(60, 0)"
    ),
    "a process that is born again and again": "if os.fork() == 0:\n    os.setsid()\n    while True:\n        if os.fork(): os._exit(0)\n        tick()",
    "a crowd that wakes one another": (
        "for _ in range(6):\n    if os.fork() == 0:\n        os.setsid()\n        threading.Thread(target=run).start()\n"
        "        while True:\n            for p in os.listdir('/proc'):\n                if p.isdecimal() and p != '1':\n"
        "                    with contextlib.suppress(OSError): os.kill(int(p), 18)"
    ),
    "one that is waited for in a fork": "if os.fork() == 0:\n    os.setsid()\n    if libc.vfork() == 0: run()",
}
"""Started by a call; ``run`` goes on for ever, ``tick`` makes a mark, and both bear a name that is looked for outside."""

WAKES_ITSELF = {
    "a timer": (
        "event = ctypes.create_string_buffer(64); struct.pack_into('Qii', event, 0, 0, signal.SIGCONT, 0); number = ctypes.c_int()\n"
        "call(222, 1, event, ctypes.byref(number)); call(223, number.value, 0, (ctypes.c_long * 4)(0, 2_000_000, 0, 200_000_000), 0)"
    ),
    "a connection": (
        "server = socket.create_server(('127.0.0.1', 0)); a = socket.create_connection(server.getsockname()); b, _ = server.accept()\n"
        "a.setsockopt(6, 18, 200); fcntl.fcntl(a, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(a, 10, signal.SIGCONT); a.setblocking(False)\n"
        "with contextlib.suppress(OSError):\n    while True: a.send(bytes(1 << 20))\n"
        "fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)"
    ),
    "a timer that stops it again": (
        "event = ctypes.create_string_buffer(64); struct.pack_into('Qii', event, 0, 0, signal.SIGCONT, 0); number = ctypes.c_int()\n"
        "def again():\n    while True: time.sleep(0.0005); os.kill(os.getpid(), signal.SIGSTOP)\n"
        "call(222, 1, event, ctypes.byref(number)); call(223, number.value, 0, (ctypes.c_long * 4)(0, 2_000_000, 0, 200_000_000), 0)\n"
        "threading.Timer(0.1, again).start()"
    ),
}
"""In the session's interpreter: the kernel wakes it although nobody else lives."""

WOKEN = (
    "me = os.getpid()\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        while True: os.kill(me, 18)\n"
    "threading.Thread(target=run, daemon=True).start()\ntime.sleep(0.1)"
)
"""In the session's interpreter, which is stopped between calls: children tell it to go on until they are dead."""
