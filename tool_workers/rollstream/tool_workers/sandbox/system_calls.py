"""Which system calls programs in a sandbox may make. What is named nowhere here does not exist for them."""

from __future__ import annotations

FORBIDDEN = (
    # other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
    # keys, kernel programs, profiling, rings
    "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register",
    # mounts and namespaces
    "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns",
    # machine
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot",
    "syslog", "quotactl", "quotactl_fd", "acct", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "iopl",
    "ioperm", "vhangup", "sethostname", "setdomainname", "nfsservctl", "_sysctl", "modify_ldt",
    # files by handle, watching all files, placement of memory
    "open_by_handle_at", "name_to_handle_at", "lookup_dcookie", "fanotify_init", "fanotify_mark", "mbind",
    "set_mempolicy", "move_pages", "migrate_pages", "memfd_secret",
)  # fmt: skip
"""Refused with EPERM, and counted: no honest program needs them here, and their use says something."""
ANSWERED = ("fsync", "fdatasync", "sync_file_range", "msync", "fadvise64")
"""Answered as if they were done. The files of /usr are the host's: these would make it write its disks, and drop what
it keeps of them in memory, so that one can tell who reads them next. What is writable is in memory anyway."""
ALLOWED_SOCKET_FAMILIES = frozenset({1, 2, 10})
"""UNIX, INET, INET6; the network namespace does not cover the others (vsock, netlink, alg)."""

ALLOWED: tuple[str, ...] = (
    # files
    "read", "write", "open", "openat", "openat2", "close", "close_range", "creat", "stat", "fstat", "lstat",
    "newfstatat", "statx", "lseek", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev", "preadv2",
    "pwritev2", "access", "faccessat", "faccessat2", "dup", "dup2", "dup3", "pipe", "pipe2", "fcntl", "flock",
    "fsync", "fdatasync", "sync_file_range", "truncate", "ftruncate", "fallocate", "fadvise64",
    "readahead", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "rename", "renameat", "renameat2", "mkdir",
    "mkdirat", "mknod", "mknodat", "rmdir", "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat",
    "readlink", "readlinkat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "umask",
    "utime", "utimes", "utimensat", "futimesat", "statfs", "fstatfs", "ustat", "sendfile", "copy_file_range",
    "splice", "tee", "ioctl", "setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr",
    "fgetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr",
    # waiting
    "select", "pselect6", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait",
    "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2", "signalfd", "signalfd4", "timerfd_create",
    "timerfd_settime", "timerfd_gettime", "nanosleep", "clock_nanosleep", "pause", "restart_syscall", "futex",
    "futex_waitv", "set_robust_list", "get_robust_list", "membarrier", "rseq",
    # memory
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "msync", "mincore", "mlock", "mlock2", "munlock",
    "mlockall", "munlockall", "remap_file_pages", "get_mempolicy", "pkey_mprotect", "pkey_alloc", "pkey_free",
    "map_shadow_stack",
    # processes
    "clone", "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "kill", "tkill",
    "tgkill", "pidfd_open", "pidfd_send_signal", "getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid",
    "getsid", "setsid", "set_tid_address", "arch_prctl", "prctl", "seccomp",
    "getrlimit", "setrlimit", "prlimit64", "getrusage", "times", "getcpu", "sched_yield", "sched_getaffinity",
    "sched_setaffinity", "sched_getscheduler", "sched_setscheduler", "sched_getparam", "sched_setparam",
    "sched_getattr", "sched_setattr", "sched_get_priority_max",
    "sched_get_priority_min", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
    "uname", "sysinfo", "getrandom",
    # signals and time
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo",
    "rt_tgsigqueueinfo", "rt_sigsuspend", "sigaltstack", "alarm", "getitimer", "setitimer", "timer_create",
    "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete", "time", "gettimeofday", "clock_gettime",
    "clock_getres",
    # who one is; nothing of it can be changed
    "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid",
    "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capget", "capset",
    # sockets
    "socket", "socketpair", "bind", "listen", "accept", "accept4", "connect", "getsockname", "getpeername",
    "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown", "setsockopt", "getsockopt",
)  # fmt: skip
"""What programs need that compute, work on files and talk to one another.

Left out on purpose: memory that is in no process (memfd, System V and POSIX queues, asynchronous rings, pages given to
pipes by vmsplice, rules of Landlock), because it escapes the watch over memory; clone3, whose flags no filter can see
(glibc falls back to clone); personality, which can switch off the randomness of addresses; inotify, which tells who
uses the host's programs (the files of /usr are the host's); sync and syncfs, which make the host write its disks.
"""
