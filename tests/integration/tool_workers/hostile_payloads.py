"""What hostile code tries in a sandbox, as tables: a name, the code, and what shows that it was held.

Every payload runs in Python inside a sandbox and prints ``OUT`` if it got what it wanted, ``HELD`` if not. System calls
are told apart by the error they end with and by what the sandbox counts as refused.
"""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

from dataclasses import dataclass

buffer = "ctypes.create_string_buffer(256)"

FORBIDDEN_CALLS = {
    # name of the call: number on x86-64, arguments
    "ptrace": "101, 0, 0, 0, 0",
    "process_vm_readv": f"310, 1, {buffer}, 1, {buffer}, 1, 0",
    "process_vm_writev": f"311, 1, {buffer}, 1, {buffer}, 1, 0",
    "process_madvise": f"440, 0, {buffer}, 1, 4, 0",
    "kcmp": "312, 1, os.getpid(), 0, 0, 0",
    "pidfd_getfd": "438, 0, 0, 0",
    "keyctl": "250, 0, -3, 1",
    "add_key": "248, b'user', b'x', b'y', 1, -2",
    "request_key": "249, b'user', b'x', 0, -2",
    "bpf": f"321, 0, {buffer}, 128",
    "perf_event_open": f"298, {buffer}, 0, -1, -1, 0",
    "userfaultfd": "323, 1",
    "io_uring_setup": f"425, 4, {buffer}",
    "io_uring_enter": "426, 0, 0, 0, 0, 0, 0",
    "io_uring_register": "427, 0, 0, 0, 0",
    "mount": "165, b'none', b'/tmp', b'tmpfs', 0, 0",
    "umount2": "166, b'/tmp', 2",
    "pivot_root": "155, b'/tmp', b'/tmp'",
    "chroot": "161, b'/tmp'",
    "move_mount": "429, -1, b'/', -1, b'/', 0",
    "open_tree": "428, -100, b'/', 1",
    "fsopen": "430, b'tmpfs', 0",
    "fsconfig": "431, 0, 0, 0, 0, 0",
    "fsmount": "432, 0, 0, 0",
    "fspick": "433, -100, b'/', 0",
    "mount_setattr": f"442, -100, b'/', 0, {buffer}, 32",
    "unshare": "272, 0x10000000",
    "setns": "308, os.open('/proc/1/ns/net', os.O_RDONLY) if os.path.exists('/proc/1/ns/nothing') else 0, 0",
    "kexec_load": "246, 0, 0, 0, 0",
    "init_module": "175, 0, 0, b''",
    "finit_module": "313, 0, b'', 0",
    "delete_module": "176, b'x', 0",
    "swapon": "167, b'/tmp/x', 0",
    "swapoff": "168, b'/tmp/x'",
    "reboot": "169, 0, 0, 0, 0",
    "syslog": f"103, 3, {buffer}, 256",
    "quotactl": f"179, 0, 0, 0, {buffer}",
    "acct": "163, 0",
    "settimeofday": f"164, {buffer}, 0",
    "clock_settime": f"227, 0, {buffer}",
    "adjtimex": "159, (ctypes.c_char * 512)()",
    "clock_adjtime": "305, 0, (ctypes.c_char * 512)()",
    "iopl": "172, 3",
    "ioperm": "173, 0, 1, 1",
    "vhangup": "153",
    "sethostname": "170, b'x', 1",
    "setdomainname": "171, b'x', 1",
    "modify_ldt": f"154, 1, {buffer}, 16",
    "open_by_handle_at": f"304, -100, {buffer}, 0",
    "name_to_handle_at": f"303, -100, b'/', {buffer}, {buffer}, 0",
    "fanotify_init": "300, 0, 0",
    "mbind": "237, 0, 4096, 0, 0, 0, 0",
    "set_mempolicy": "238, 0, 0, 0",
    "move_pages": "279, 1, 0, 0, 0, 0, 0",
    "migrate_pages": "256, 1, 0, 0, 0",
    "memfd_secret": "447, 0",
    "clone": "56, 0x10000000 | 17, 0, 0, 0, 0",
    "prlimit64": f"302, os.getppid(), 7, {buffer}, 0",
    "socket": "41, 40, 1, 0",
    "sched_setaffinity": f"203, 1, 8, {buffer}",
    "setpriority": "141, 0, 1, 19",
    "ioprio_set": "251, 1, 1, 0",
    "ioctl": "16, 0, 0x5412, b'x'",
}
"""Refused with EPERM, and counted by name."""

SOCKETS = {family: f"41, {family}, {kind}, {protocol}" for family, kind, protocol in (
    (15, 3, 2), (16, 3, 0), (17, 3, 768), (21, 5, 0), (29, 3, 1), (30, 5, 0), (31, 3, 0), (38, 5, 0), (40, 1, 0),
    (44, 3, 0),
)}  # fmt: skip
"""KEY, NETLINK, PACKET, RDS, CAN, TIPC, BLUETOOTH, ALG, VSOCK, XDP."""

ABSENT_CALLS = {
    "memfd_create": "319, b'x', 0",
    "shmget": "29, 0, 4096, 0o1600",
    "msgget": "68, 0, 0o1600",
    "semget": "64, 0, 1, 0o1600",
    "mq_open": "240, b'x', 0o102, 0o600, 0",
    "io_setup": f"206, 4, {buffer}",
    "clone3": f"435, {buffer}, 64",
    "personality": "135, 0x0040000",
    "landlock_of_the_future": "470, 0, 0, 0",
    "no_such_call": "9999, 0, 0, 0",
    "uselib": "134, b'/x'",
}
"""Answered as if the kernel did not know them."""


@dataclass(frozen=True)
class Attempt:
    """Code that says OUT or HELD. ``{...}`` are facts of the host: see ``Outside`` in the tests.

    Attributes:
        weakness: the layer without which it gets out; "local": without any sandbox. None: what it is after is nowhere,
            so that there is nothing to take away.
    """

    code: str
    weakness: str | None = "local"


ATTEMPTS: dict[str, Attempt] = {
    # files
    "read the canary by its path": Attempt("say(works(lambda: {word!r} in open({canary!r}).read()))"),
    "read the canary through the root of process 1": Attempt(
        "say(works(lambda: {word!r} in open('/proc/1/root' + {canary!r}).read()))", None
    ),
    "read the canary through one's own root": Attempt(
        "say(works(lambda: {word!r} in open('/proc/self/root' + {canary!r}).read()))"
    ),
    "read the canary with dots": Attempt("say(works(lambda: {word!r} in open('../' * 12 + {canary!r}[1:]).read()))"),
    "read the canary through a link": Attempt(
        "os.symlink({canary!r}, 'link'); say(works(lambda: {word!r} in open('link').read()))"
    ),
    "find the canary in any file": Attempt(
        "say(any({word!r} in open(os.path.join(place, name), errors='replace').read(10**6)"
        " for place, _, names in os.walk({canary_folder!r}) for name in names))"
    ),
    "write beside the canary": Attempt("say(works(lambda: open({canary_folder!r} + '/written', 'w').close()))"),
    "remove the canary": Attempt("say(works(lambda: os.unlink({canary!r} + '.copy')))"),
    "change the mode of the canary": Attempt("say(works(lambda: os.chmod({canary!r}, 0o777)))"),
    "hard link the canary": Attempt("say(works(lambda: os.link({canary!r}, {canary_folder!r} + '/hard')))"),
    "read the shadow file": Attempt("say(works(lambda: open('/etc/shadow').read()))", None),
    "list the home of root": Attempt("say(works(lambda: os.listdir('/root')))", None),
    "read raw memory": Attempt("say(any(works(lambda p=p: open(p, 'rb').read(1)) for p in ('/dev/mem', '/dev/kmem', '/dev/port', '/proc/kcore')))", None),
    "read the kernel's log": Attempt("say(any(works(lambda p=p: os.open(p, os.O_RDONLY | os.O_NONBLOCK)) for p in ('/dev/kmsg', '/proc/kmsg')))", None),
    "find a block device": Attempt("import stat; say(any(stat.S_ISBLK(os.lstat(p).st_mode) for p in glob.glob('/dev/*')))", None),
    "make a device": Attempt("import stat; say(works(lambda: os.mknod('/tmp/d', 0o600 | stat.S_IFCHR, os.makedev(1, 1)) or os.open('/tmp/d', os.O_RDONLY)))", None),
    "find a socket of a container engine": Attempt("say(any(os.path.exists(p) for p in ('/var/run/docker.sock', '/run/docker.sock', '/run/podman/podman.sock', '/run/containerd/containerd.sock', '/run/dbus/system_bus_socket')))", None),
    "find credentials": Attempt("say(any(os.path.exists(os.path.expanduser(p)) for p in ('/root/.ssh', '~/.aws', '~/.kube', '/var/run/secrets', '/etc/kubernetes', '~/.config/gcloud', '/etc/krb5.keytab')))", None),
    "learn paths of the host from mounts": Attempt("say({canary_folder!r} in open('/proc/self/mountinfo').read())", None),
    "learn the name of the host": Attempt("say(socket.gethostname() == {hostname!r} or os.uname().nodename == {hostname!r})"),
    "learn how the kernel was started": Attempt("say(bool(open('/proc/cmdline').read().strip()))", "hidden files"),
    # writing what is everybody's
    "write to the root": Attempt("say(any(works(lambda p=p: open(p + '/x', 'w').close()) for p in ('/', '/run', '/etc')))", "read-only root"),
    "write to devices' folder": Attempt("say(works(lambda: open('/dev/x', 'w').close()))", "read-only root"),
    "write to programs": Attempt("say(any(works(lambda p=p: open(p + '/x', 'w').close()) for p in ('/usr', '/usr/bin', '/bin', '/lib')))", None),
    "change what is mounted read-only": Attempt("say(works(lambda: subprocess.run(['mount', '-o', 'remount,rw', '/'], check=True, capture_output=True)))", None),
    "replace the supervisor": Attempt("say(any(works(lambda p=p: open(p, 'ab').close()) for p in ('/run/rollstream.pyz', '/run/asking.bpf')))", None),
    "set a core pattern": Attempt("say(works(lambda: open('/proc/sys/kernel/core_pattern', 'w').close()))", None),
    "press system request keys": Attempt("say(works(lambda: open('/proc/sysrq-trigger', 'w').close()))", None),
    "change the kernel's settings": Attempt("say(any(works(lambda p=p: os.close(os.open(p, os.O_WRONLY))) for p in glob.glob('/proc/sys/*/*') + glob.glob('/proc/sys/*/*/*')))", "hidden folders"),
    "change control groups": Attempt("say(os.path.isdir('/sys/fs/cgroup') and any(works(lambda p=p: open(p, 'w').close()) for p in glob.glob('/sys/fs/cgroup/*')))", None),
    "escape through a release agent": Attempt("say(bool(glob.glob('/sys/fs/cgroup/*/release_agent')))", None),
    # processes
    "see the victim": Attempt("say(os.path.exists('/proc/{victim}/cmdline') and b'sleep' in open('/proc/{victim}/cmdline', 'rb').read())"),
    "signal the victim": Attempt("say(works(lambda: os.kill({victim}, 0)) and b'sleep' in open('/proc/{victim}/cmdline', 'rb').read())"),
    "find the word in environments": Attempt("say(any(works(lambda p=p: {word!r}.encode() in open(p, 'rb').read()) for p in glob.glob('/proc/[0-9]*/environ')))"),
    "find the word in command lines": Attempt("say(any(works(lambda p=p: {word!r}.encode() in open(p, 'rb').read()) for p in glob.glob('/proc/[0-9]*/cmdline') if '/%d/' % os.getpid() not in p and '/self/' not in p))", None),
    "read the memory of process 1": Attempt("say(works(lambda: open('/proc/1/mem', 'rb')))", None),
    "read the environment of process 1": Attempt("say(works(lambda: open('/proc/1/environ', 'rb').read()))", None),
    "list the descriptors of process 1": Attempt("say(works(lambda: os.listdir('/proc/1/fd')))", None),
    "enter the folder of process 1": Attempt("say(works(lambda: os.chdir('/proc/1/cwd')))", None),
    "take over process 1 by a descriptor": Attempt("pidfd = os.pidfd_open(1)\nsay(any(call(438, pidfd, n, 0)[0] >= 0 for n in range(12)))", None),
    "kill process 1": Attempt("[os.kill(1, s) for s in (9, 19, 15, 11)]; time.sleep(0.1); say(open('/proc/1/stat').read().split()[2] in 'TtZ')", None),
    "attach to process 1": Attempt("say(call(101, 16, 1, 0, 0)[0] >= 0)", None),
    "slow process 1 down": Attempt("say(call(203, 1, 8, ctypes.byref(ctypes.c_ulong(1)))[0] >= 0 or works(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19)))", "filter"),
    "lower the limits of process 1": Attempt("say(works(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3))))", "filter"),
    "be killed last when memory is short": Attempt("say(works(lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')))", None),
    "have process 1 killed first": Attempt("say(works(lambda: os.write(os.open('/proc/1/oom_score_adj', os.O_WRONLY), b'1000')))", None),
    # rights
    "become root": Attempt("say(any(works(f) for f in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0))))", None),
    "become another user": Attempt("say(any(works(lambda n=n: os.setuid(n)) for n in (1, 65534, 64100, 64101)))", None),
    "gain by a setuid program": Attempt("say(works(lambda: b'uid=0' in subprocess.run(['su', '-c', 'id'], capture_output=True, stdin=subprocess.DEVNULL, check=True).stdout))", None),
    "hold a capability": Attempt("say(any(int(l.split()[1], 16) for l in open('/proc/self/status') if l[:3] == 'Cap' and l[:6] != 'CapBnd'))", None),
    "shed no_new_privs": Attempt("libc.prctl(38, 0, 0, 0, 0); say('NoNewPrivs:\\t1' not in open('/proc/self/status').read())", None),
    "switch the filter off": Attempt("libc.prctl(22, 0, 0, 0, 0); say('Seccomp:\\t2' not in open('/proc/self/status').read())", None),
    "listen to the filter oneself": Attempt("p = (ctypes.c_ushort * 16)(); say(call(317, 1, 8, ctypes.byref(p))[0] >= 0)", None),
    "open a user namespace by the command": Attempt("say(works(lambda: subprocess.run(['unshare', '-Ur', 'true'], check=True, capture_output=True)))", "filter and namespaces"),
    "open any namespace by clone": Attempt("import itertools\nsay(any(call(56, flag | 17, 0, 0, 0, 0)[0] > 0 for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)))", None),
    "start bubblewrap inside": Attempt("say(works(lambda: subprocess.run(['bwrap', '--ro-bind', '/', '/', 'true'], check=True, capture_output=True)))", None),
    "call as a 32-bit program": Attempt(
        "import mmap\npage = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "child = os.fork()\nif child == 0:\n"
        "    f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "    os._exit(7 if f() > 0 else 8)\n"
        "_, status = os.waitpid(child, 0); say(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7)",
        None,
    ),
    "call by x32 numbers": Attempt(
        "child = os.fork()\nif child == 0: os._exit(7 if call(0x40000000 + 39)[0] > 0 else 8)\n"
        "_, status = os.waitpid(child, 0); say(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7)",
        None,
    ),
    # network
    "connect to the worker's loopback": Attempt("say(works(lambda: socket.create_connection(('127.0.0.1', {port}), 1).close()))"),
    "connect to the worker's loopback over IPv6": Attempt("say(works(lambda: socket.create_connection(('::1', {port6}), 1).close()))"),
    "connect to the worker by 0.0.0.0": Attempt("say(works(lambda: socket.create_connection(('0.0.0.0', {port}), 1).close()))"),
    "connect to the worker by a mapped address": Attempt("say(works(lambda: socket.create_connection(('::ffff:127.0.0.1', {port}), 1).close()))"),
    "ask for metadata": Attempt("say(works(lambda: socket.create_connection(('169.254.169.254', 80), 1).close()))", None),
    "resolve a name": Attempt("say(works(lambda: socket.getaddrinfo('example.org', 80)))", None),
    "reach the internet": Attempt("say(works(lambda: socket.create_connection(('192.0.2.1', 443), 1).close()))", None),
    "send a datagram out": Attempt("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nsay(works(lambda: s.sendto(b'x', ('192.0.2.1', 53)) and None))", None),
    "send to the worker's datagram port": Attempt("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('127.0.0.1', {udp}))\ns.send({word!r}.encode())\ns.settimeout(1)\nsay(works(lambda: s.recv(10)))"),
    "see an interface": Attempt("say(len(open('/proc/net/dev').read().splitlines()) > 3)", "network"),
    "bring up an interface": Attempt("s = socket.socket(); say(works(lambda: fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0))))", None),
    "open a raw socket": Attempt("say(any(works(lambda f=f: socket.socket(f, socket.SOCK_RAW, 1)) for f in (2, 10)))", None),
    "connect to an abstract socket of the host": Attempt("say(works(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + {word!r})))"),
    "connect to a socket file of the host": Attempt("say(works(lambda: socket.socket(socket.AF_UNIX).connect({socket_file!r})))"),
    "speak to the host by vsock": Attempt("say(works(lambda: socket.socket(40, 1).connect((2, 1024))))", None),
    # what others left
    "read memory shared by the host": Attempt("say(works(lambda: open('/dev/shm/{word}').read()))"),
    "read temporary files of the host": Attempt("say(works(lambda: open('/tmp/{word}').read()))"),
    "read a key of the worker": Attempt("say(call(249, b'user', b'{word}', 0, -3)[0] >= 0)", None),
    "reach an inherited descriptor": Attempt("say(any(works(lambda n=n: os.fstat(n)) for n in range(3, 256)))", None),
    "answer in the supervisor's place": Attempt("say(any(works(lambda n=n: os.write(n, b'\\0\\0\\0\\2{{}}') and None) for n in range(3, 256)))", None),
    "inject into a terminal": Attempt("say(works(lambda: os.open('/dev/tty', os.O_RDWR)))", None),
    "open a terminal of the host": Attempt("say(any(p not in ('/dev/pts/ptmx',) for p in glob.glob('/dev/pts/*')) or works(lambda: os.open('/dev/console', os.O_RDWR)))", None),
}  # fmt: skip
