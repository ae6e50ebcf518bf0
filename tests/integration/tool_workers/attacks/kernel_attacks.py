"""Ways into the kernel and to more rights that system calls offer when they are called in unusual ways. x86-64."""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

from attack_cases import Attack

FILTER = "filter"
HIGH_BITS = 1 << 32

RIGHTS = {
    "raise capabilities": Attack(
        "header, data = struct.pack('=II', 0x20080522, 0), struct.pack('=6I', *[0x1ff] * 2, 0, 0, 0, 0)\n"
        "say(call(126, header, data)[0] == 0)",
        "local",
    ),
    "raise ambient capabilities": Attack("say(libc.prctl(47, 2, 21, 0, 0) == 0)"),
    "loosen secure bits": Attack("say(libc.prctl(28, 0, 0, 0, 0) == 0)", "local"),
    "leave no groups": Attack("say(works(lambda: os.setgroups([])))", "local"),
    "join the group of root": Attack("say(any(works(lambda n=n: os.setgroups([n])) for n in (0, 4, 6, 42)))", "local"),
    "give a file to root": Attack("f = tempfile.NamedTemporaryFile()\nsay(works(lambda: os.chown(f.name, 0, 0)))", "local"),
    "give a file to another sandbox": Attack("f = tempfile.NamedTemporaryFile()\nsay(any(works(lambda n=n: os.chown(f.name, n, n)) for n in (64100, 64101, 65534)))", "local"),
    "put capabilities on a file": Attack(
        "f = tempfile.NamedTemporaryFile(dir='.')\n"
        "say(works(lambda: os.setxattr(f.name, 'security.capability', struct.pack('<5I', 0x02000001, 0x1ff, 0, 0, 0))))",
        "local",
    ),
    "write trusted attributes": Attack("f = tempfile.NamedTemporaryFile(dir='.')\nsay(works(lambda: os.setxattr(f.name, 'trusted.x', b'x')))", "local"),
    "make a block device": Attack("import stat\nsay(works(lambda: os.mknod('block', 0o600 | stat.S_IFBLK, os.makedev(7, 0)) or os.unlink('block')))", "local"),
    "take the real-time class of the disk": Attack("say(call(251, 1, 0, 1 << 13)[0] == 0)", "local"),
    "gain by a file of one's own with the setuid bit": Attack(
        "import shutil, subprocess\nshutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o6755)\n"
        "say(b'euid' in subprocess.run(['./id'], capture_output=True).stdout)"
    ),
    "have the host's program for crashes called": Attack(
        "import subprocess\nresource.setrlimit(4, (0, 0)); resource.prlimit(0, 4, (0, 0)); subprocess.run(['bash', '-c', 'ulimit -c 0'])\n"
        "say(resource.getrlimit(4) != (1, 1))",
        "filter",
    ),
    "know physical addresses": Attack(
        "b = ctypes.create_string_buffer(b'x' * 4096)\nf = os.open('/proc/self/pagemap', os.O_RDONLY)\n"
        "say(struct.unpack('Q', os.pread(f, 8, ctypes.addressof(b) // 4096 * 8))[0] & ((1 << 55) - 1))",
        "local",
    ),
    "know addresses of the kernel": Attack("say(any(int(l.split()[0], 16) for l in open('/proc/kallsyms').readlines(10**5)))"),
    "know what runs in the kernel": Attack("say(works(lambda: open('/proc/self/stack').read(1)) or works(lambda: open('/proc/timer_list').read(1)))", "local"),
}  # fmt: skip

UNUSUAL = {
    "vsock by high bits": Attack(f"say(call(41, {HIGH_BITS} | 40, 1, 0)[1] != 'EPERM')", FILTER),
    "netlink by high bits": Attack(f"say(call(41, {HIGH_BITS} | 16, 3, 0)[1] != 'EPERM')", FILTER),
    "any family by a pair": Attack("b = struct_of(0, 0)\nsay(any(call(53, f, 1, 0, b)[1] != 'EPERM' for f in (2, 10, 15, 16, 17, 21, 29, 30, 31, 38, 40, 44)))", FILTER),
    "a pair by high bits": Attack(f"b = struct_of(0, 0)\nsay(any(call(53, {HIGH_BITS} | f, 1, 0, b)[1] != 'EPERM' for f in (16, 30, 38, 40)))", FILTER),
    "type ahead by high bits": Attack(f"say(call(16, 0, {HIGH_BITS} | 0x5412, b'x')[1] != 'EPERM')", FILTER),
    "write to a console by high bits": Attack(f"say(call(16, 0, {HIGH_BITS} | 0x541C, b'x')[1] != 'EPERM')", FILTER),
    "type ahead on a terminal of one's own": Attack("a, b = os.openpty()\nsay(works(lambda: fcntl.ioctl(b, 0x5412, b'x')))"),
    "a namespace by high bits": Attack(f"say(any(call(56, {HIGH_BITS} | flag | 17, 0, 0, 0, 0)[1] != 'EPERM' for flag in (0x20000, 0x10000000, 0x40000000)))"),
    "all namespaces at once": Attack("say(call(56, 0x7e020000 | 17, 0, 0, 0, 0)[1] != 'EPERM')"),
    "limits by high bits": Attack(f"b = struct_of(0, 0)\nsay(call(302, {HIGH_BITS} | os.getppid(), 4, b, 0)[1] != 'EPERM')", FILTER),
    "a filter that tells": Attack(
        "code = struct.pack('HBBI', 6, 0, 0, 0x7fff0000)\nb = ctypes.create_string_buffer(code)\n"
        "program = struct.pack('HxxxxxxQ', 1, ctypes.addressof(b))\nsay(call(317, 1, 8, program)[0] >= 0)",
        FILTER,
    ),
    "know all mounts": Attack("say(any(call(n, 0, 0, 0, 0)[1] != 'ENOSYS' for n in (457, 458)))", FILTER),
    "open trees with attributes": Attack("say(any(call(n, -100, b'/', 1, 0, 0)[1] != 'ENOSYS' for n in (463, 464, 467, 468, 469)))"),
    "ask security modules": Attack("say(any(call(n, 0, 0, 0, 0)[1] != 'ENOSYS' for n in (459, 460, 461)))"),
    "place memory": Attack("say(any(call(n, 0, 0, 0, 0)[1] != 'ENOSYS' for n in (448, 450)))", FILTER),
    "ask what is in the cache": Attack("b = struct_of(0, 4096)\nsay(call(451, 0, b, struct_of(0, 0, 0, 0, 0), 0)[1] != 'ENOSYS')", FILTER),
    "call by numbers of other kinds": Attack(
        "def dies(number):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if call(number, 0, 0, 0)[1] == 'ENOSYS' else 9)\n"
        "    return os.waitpid(child, 0)[1] != 9 << 8\n"
        "say(not all(map(dies, [0x40000000 | n for n in (41, 101, 165, 272, 512, 520, 534, 547)])))"
    ),
    "be traced by a child": Attack("say(libc.prctl(0x59616d61, -1, 0, 0, 0) == 0 and call(101, 0, 0, 0, 0)[0] == 0)"),
    "move one's own command line": Attack("say(libc.prctl(35, 8, ctypes.c_ulong(id(libc)), 0, 0) == 0)"),
}  # fmt: skip
