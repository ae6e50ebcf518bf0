"""Memory, and things of the kernel, that belong to no process or to none that shows it.

Each takes about ``MEBIBYTES`` if it can, holds it for ``HELD_S``, and says END. So much is no danger to a machine; a
limit far below must stop it.
"""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

MEBIBYTES = 600
HELD_S = 0.6
HOLD = f"\ntime.sleep({HELD_S})\nprint('END', flush=True)"
BLOCKS = MEBIBYTES // 20

HIDDEN: dict[str, tuple[str, str]] = {
    # code, and what else but the limit of memory has to be missing for it to come to its end
    "one's own memory": (f"b = bytearray({MEBIBYTES} << 20)" + HOLD, ""),
    "of a process whose first thread has ended": (
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        go = threading.Event()\n"
        "        def work():\n"
        f"            go.wait(); time.sleep(0.05); b = bytearray({MEBIBYTES // 2} << 20); time.sleep({2 * HELD_S}); os._exit(0)\n"
        "        threading.Thread(target=work).start(); go.set(); call(60, 0)\n"
        "assert [os.wait()[1] for _ in range(2)] == [0, 0]" + HOLD,
        "",
    ),
    "shared and no longer mapped": (
        f"kept = []\nfor _ in range({BLOCKS}):\n    m = mmap.mmap(-1, 20 << 20); m.write(bytes(20 << 20)); m.madvise(mmap.MADV_DONTNEED); kept.append(m)" + HOLD,
        "filter",
    ),
    "shared and mapped for one page": (
        f"kept = []\nfor _ in range({BLOCKS}):\n    m = mmap.mmap(-1, 20 << 20); m.write(bytes(20 << 20)); m.resize(4096); kept.append(m)" + HOLD,
        "filter",
    ),
    "shared by the device of zeros": (
        "f = os.open('/dev/zero', os.O_RDWR); kept = []\n"
        f"for _ in range({BLOCKS}):\n    m = mmap.mmap(f, 20 << 20); m.write(bytes(20 << 20)); m.madvise(mmap.MADV_DONTNEED); kept.append(m)" + HOLD,
        "filter",
    ),
    "huge pages in pipes": (
        "libc.mmap.restype = ctypes.c_void_p; libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]\n"
        "H, kept = 2 << 20, []\n"
        f"for n in range({MEBIBYTES // 2}):\n"
        "    if n % 16 == 0: kept.append(os.pipe())\n"
        "    a = libc.mmap(None, 2 * H, 3, 0x22, -1, 0); b = (a + H - 1) & -H\n"
        "    libc.madvise(ctypes.c_void_p(b), ctypes.c_size_t(H), 14); ctypes.memset(b, 1, H)\n"
        "    assert call(278, kept[-1][1], struct_of(b, 4096), 1, 0)[0] > 0\n"
        "    libc.munmap(ctypes.c_void_p(a), ctypes.c_size_t(2 * H))" + HOLD,
        "filter",
    ),
    "queues of local sockets": (
        "kept, total = [], 0\n"
        f"while total < {MEBIBYTES} << 20:\n"
        "    pair = socket.socketpair(); kept.append(pair)\n"
        "    for s in pair:\n"
        "        s.setsockopt(1, 7, 1 << 24); s.setblocking(False)\n"
        "        with contextlib.suppress(OSError):\n"
        "            while True: total += s.send(bytes(65536))" + HOLD,
        "filter",
    ),
    "queues of connections": (
        "server = socket.create_server(('127.0.0.1', 0)); server.listen(200); kept, total = [], 0\n"
        f"while total < {MEBIBYTES} << 20:\n"
        "    a = socket.create_connection(server.getsockname()); b, _ = server.accept(); kept += [a, b]; time.sleep(0.005)\n"
        "    for s in (a, b):\n"
        "        s.setblocking(False)\n"
        "        with contextlib.suppress(OSError):\n"
        "            while True: total += s.send(bytes(1 << 20))" + HOLD,
        "",
    ),
    "what watchers have not read": (
        "kept = [libc.inotify_init() for _ in range(100)]\nassert min(kept) >= 0\n"
        "for k in kept: libc.inotify_add_watch(k, b'/tmp', 2)\n"
        "f = [os.open('/tmp/' + c * 250, os.O_RDWR | os.O_CREAT) for c in 'ab']\n"
        "for _ in range(8000): os.pwrite(f[0], b'x', 0); os.pwrite(f[1], b'x', 0)" + HOLD,
        "filter",
    ),
}  # fmt: skip

COUNTED: dict[str, str] = {
    "locks on files": (
        "n = 0\nuntil = time.monotonic() + 5\n"
        "while time.monotonic() < until:\n"
        "    if n % 1500 == 0: f = os.open('/tmp/l%d' % n, os.O_RDWR | os.O_CREAT)\n"
        "    fcntl.fcntl(f, fcntl.F_SETLK, struct.pack('hhqqi', 1, 0, 2 * n, 1, 0)); n += 1\n"
        "print('END')"
    ),
    "terminals": (
        "for _ in range(3): os.fork()\nkept = []\n"
        "with contextlib.suppress(OSError):\n    while True: kept.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))\n"
        "time.sleep(5); print('END')"
    ),
    "attributes of one file": (
        "open('/workspace/f', 'w').close()\n"
        "for n in range(10**6): os.setxattr('/workspace/f', 'user.%d' % n, b'x')\nprint('END')"
    ),
    "names of one file": "open('/tmp/f', 'w').close()\nfor n in range(10**6): os.link('/tmp/f', '/tmp/%d' % n)\nprint('END')",
    "long names with line ends": "for n in range(10**6): open('/tmp/' + ('%d\\n\\x1b[2J' % n).ljust(250, 'x'), 'w').close()\nprint('END')",
    "pipes and sockets of many": (
        "for _ in range(3): os.fork()\nkept = []\n"
        "with contextlib.suppress(OSError):\n    while True: kept.append(socket.socketpair())\n"
        "time.sleep(5); print('END')"
    ),
}
"""Things of the kernel, so many that the call is ended for it."""
