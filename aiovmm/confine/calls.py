"""Which system calls a monitor makes once its guest runs: by concern, and all others are refused.

Not among them, on purpose: execve and fork (whatever is started is started before), ptrace and process_vm_* (other processes),
mount, unshare and setns, bpf, perf_event_open, keyctl, kexec, modules, quotas, limits, set*id, chown, mknod and whatever is
newer than this list. Nor io_uring_setup, for what a ring is asked to do no filter sees: it opens sockets of any family. Rings
that are there do what disks need (native/src/uring.c). Nor pidfd_send_signal: whom a descriptor means no filter sees either.
"""

from __future__ import annotations

__all__ = ["ALLOWED", "NOT_KNOWN"]

_MEMORY = """
mmap munmap mremap mprotect madvise msync brk mlock mlock2 munlock mincore memfd_create userfaultfd mbind set_mempolicy
get_mempolicy
"""
_FILES = """
read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 open openat openat2 close close_range lseek stat
lstat fstat newfstatat statx access faccessat faccessat2 flock truncate ftruncate fallocate fsync fdatasync
sync_file_range fadvise64 copy_file_range sendfile splice getdents64 readlink readlinkat getcwd chdir fchdir mkdir mkdirat
rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod fchmodat umask utimensat statfs
fstatfs fgetxattr fsetxattr dup dup2 dup3 pipe pipe2
"""
_LOOP = """
epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 eventfd2 timerfd_create timerfd_settime
timerfd_gettime signalfd4 inotify_init1 inotify_add_watch inotify_rm_watch io_uring_enter io_setup
io_submit io_getevents io_cancel io_destroy
"""
_THREADS = """
futex futex_waitv set_robust_list get_robust_list rseq set_tid_address membarrier arch_prctl prctl getcpu restart_syscall exit
exit_group gettid getpid getppid getpgid getpgrp getsid sched_yield sched_getaffinity sched_setaffinity sched_getscheduler
sched_setscheduler sched_getparam sched_setparam sched_getattr sched_setattr sched_get_priority_min sched_get_priority_max
getpriority setpriority wait4 waitid pidfd_open
"""
_SIGNALS = """
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack setitimer getitimer alarm
pause
"""
_TIME = "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage"
_WHO = """
getuid geteuid getgid getegid getresuid getresgid getgroups capget uname sysinfo getrandom getrlimit
"""
_SOCKETS = """
socketpair bind connect listen accept accept4 getsockname getpeername setsockopt getsockopt shutdown sendto sendmsg sendmmsg
recvfrom recvmsg recvmmsg
"""

ALLOWED = tuple(" ".join((_MEMORY, _FILES, _LOOP, _THREADS, _SIGNALS, _TIME, _WHO, _SOCKETS)).split())
"""Without a look at their arguments. Judged by those are ioctl, fcntl, socket, clone, kill, tgkill and prlimit64 (filter.py)."""

NOT_KNOWN = ("clone3",)
"""Answered as by a kernel that does not have them (ENOSYS): their arguments are in memory, where no filter sees them, and the C
library goes on with the older call."""
