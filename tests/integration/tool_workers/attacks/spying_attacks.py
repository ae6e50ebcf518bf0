"""Ways to learn of the host and of other sandboxes, and to be noticed by them."""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

from attack_cases import Attack

SPYING = {
    "hear who uses a program": Attack("say(call(253)[0] >= 0)", "filter"),
    "hear who uses a program, newer": Attack("say(call(294, 0)[0] >= 0)", "filter"),
    "be told who uses a folder": Attack("f = os.open('/usr/bin', os.O_RDONLY)\nsay(works(lambda: fcntl.fcntl(f, 1026, 0x80000001) == 0))", "filter"),
    "read the names of keys": Attack("say(os.path.exists('/proc/keys') and {key!r} in open('/proc/keys').read())", "key files"),
    "count keys of users": Attack("say(os.path.exists('/proc/key-users') and open('/proc/key-users').read() != '')", "key files"),
    "find a socket of the host by name": Attack("say({word!r} in open('/proc/net/unix').read())", "network"),
    "find a port of the host": Attack("say('%04X' % {port} in open('/proc/net/tcp').read())", "network"),
    "see hardware": Attack("say(any(map(os.path.exists, ('/sys/class', '/sys/devices', '/sys/firmware'))))", "local"),
    "see devices": Attack(
        "known = 'core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero console'.split()\n"
        "say(set(os.listdir('/dev')) - set(known))",
        "local",
    ),
    "read what process 1 has mapped": Attack("say(any(works(lambda n=n: open('/proc/%d/%s' % (os.getppid(), n), 'rb').read(1)) for n in ('maps', 'auxv', 'io', 'syscall', 'pagemap', 'smaps', 'stack')))", "local"),
    "follow what process 1 has open": Attack("say(any(works(lambda n=n: os.readlink('/proc/%d/%s' % (os.getppid(), n))) for n in ('exe', 'root', 'cwd', 'ns/net', 'fd/0')))", "local"),
    "hear who reads a file": Attack(
        "f = os.open('/usr/bin/perl', os.O_RDONLY); size = os.fstat(f).st_size & -4096\nos.posix_fadvise(f, 0, 0, 1)\n"
        "def is_kept():\n    return works(lambda: os.preadv(f, [bytearray(64)], size - 4096, os.RWF_NOWAIT))\n"
        "os.pread(f, 64, size - 4096); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED); time.sleep(0.1)\nwas_kept = is_kept()\n"
        "os.pread(f, 64, size - 4096)\nsay(is_kept() and not was_kept)",
        "filter",
    ),
    "make the host write a file of its": Attack(
        "say(any(call(n, -1, 0, 0, 0)[1] == 'EBADF' for n in (74, 75, 277)))",
        "filter",
    ),
    "make the host write its disks": Attack("say(call(162)[1] != 'ENOSYS')", "filter"),
    "make one file system of the host write": Attack("say(call(306, os.open('/usr', os.O_RDONLY))[1] != 'ENOSYS')", "filter"),
    "find the worker's folder": Attack("say(any({folder!r} in p for p in (*os.environ.values(), *sys.path, os.getcwd(), open('/proc/self/mountinfo').read())))"),
    "find the worker's code": Attack("say(any(m.startswith('rollstream') for m in sys.modules) and works(lambda: __import__('rollstream.tool_workers.service')))"),
    "find other sandboxes' folders": Attack("say(works(lambda: open('/proc/self/root/newroot/x')) or works(lambda: os.listdir('/oldroot')) or works(lambda: os.listdir('/newroot')))"),
    "see programs of all": Attack("say(max(int(p) for p in os.listdir('/proc') if p.isdecimal()) > 2000)"),
    "share semaphores with the host": Attack("say(any(works(lambda k=k: int(k.split()[0])) for p in glob.glob('/proc/sysvipc/*') for k in open(p).readlines()[1:]))"),
}  # fmt: skip
