"""The program that tries to get out, and reports what it could reach as one JSON object."""

from __future__ import annotations

PROBE = r"""
import ctypes, glob, json, os, socket
canary_file, canary_word, port = {canaries!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
x86 = os.uname().machine == "x86_64"

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

def call(number, *arguments):
    return libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])

def readable(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""

def write(path):
    with open(path, "w") as file:
        file.write("x")

def visible(path):
    try:
        return bool(os.listdir(path)) if os.path.isdir(path) else bool(readable(path))
    except OSError:
        return False

def size(path):
    facts = os.statvfs(path)
    return facts.f_blocks * facts.f_frsize

# ptrace, bpf, perf_event_open, io_uring_setup, userfaultfd, memfd_create, shmget, msgget, open_by_handle_at, keyctl
numbers = {{"ptrace": (101, 0), "bpf": (321, 0), "perf_event_open": (298, 0), "io_uring_setup": (425, 1),
           "userfaultfd": (323, 1), "memfd_create": (319, b"x", 0), "shmget": (29, 0, 4096, 0o600),
           "msgget": (68, 0, 0o600), "process_vm_readv": (310, 1)}} if x86 else {{}}
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
word = canary_word.encode()
print(json.dumps({{
    "environment": sorted(os.environ),
    "word_in_processes": any(
        word in readable(p + "/environ") + readable(p + "/cmdline") for p in glob.glob("/proc/[0-9]*")
    ),
    "pids": [int(p) for p in os.listdir("/proc") if p.isdecimal()],
    "host_files": [p for p in (canary_file, "/root", "/etc/shadow", "/proc/kcore", "/run/docker.sock") if visible(p)],
    "loopback_refused": refused(lambda: socket.create_connection(("127.0.0.1", port), 2)),
    "internet_refused": refused(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "ipv6_refused": refused(lambda: socket.create_connection(("2001:db8::1", 80), 2)),
    "sockets_refused": all(refused(lambda: socket.socket(family, socket.SOCK_RAW)) for family in (16, 17, 38, 40)),
    "writes_refused": all(refused(lambda: write(p)) for p in ("/x", "/usr/x", "/etc/x", "/dev/x", "/proc/sys/x")),
    "workspace_writable": not refused(lambda: write("/workspace/probe")),
    "seccomp": status["Seccomp"].strip(),
    "calls_allowed": [name for name, given in numbers.items() if call(*given) >= 0],
    "clones_allowed": [flag for flag in (0x10000000, 0x40000000, 0x20000) if x86 and call(56, flag | 17, 0, 0) >= 0],
    "keyring_refused": not x86 or call(250, 0, -3, 0) < 0,
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapAmb"], 16),
    "unshare": libc.unshare(0x10000000),
    "open_files": sorted(int(f) for f in os.listdir("/proc/self/fd")),
    "sizes": {{path: size(path) for path in ("/workspace", "/tmp", "/dev/shm")}},
    "uid": os.getuid(),
}}))
"""
