"""Which system calls may a container make? Pure: the `linux.seccomp` part of an OCI configuration.

An allow list, in groups by what they are for. What is known and not for containers answers EPERM, whatever nobody here has heard
of answers ENOSYS, so that libraries that try something newer fall back (glibc does so for clone3). Left out on purpose: what
mounts, loads, traces the kernel or changes clocks; new namespaces; keyrings, which no namespace divides; io_uring, whose work no
seccomp sees; sockets of families with a record (AF_ALG, AF_VSOCK, AF_PACKET).
"""

from __future__ import annotations

from functools import lru_cache

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
#: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_NEW_NAMESPACES = 0x7E02_0000
#: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_FAMILIES = (1, 2, 10, 16)
#: personality(2): Linux, Linux with the address space of 32 bits, UNAME26, both, and asking
_PERSONALITIES = (0x0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)

_FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr
flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents
getdents64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat
listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat
open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename
renameat renameat2 rmdir sendfile sendfile64 setxattr splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range sync_file_range2 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes
vmsplice write writev
"""
_MEMORY = """
brk cachestat get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret migrate_pages mincore mlock
mlock2 mlockall mmap mmap2 move_pages mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
process_madvise process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node shmat shmctl shmdt shmget
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid
getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_getfd pidfd_open
pidfd_send_signal pidfd_spawn prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall riscv_hwprobe rseq
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
setsid setuid setuid32 sysinfo tgkill time times tkill ugetrlimit uname vfork wait4 waitid waitpid chroot
"""
_SIGNALS_AND_TIME = """
alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 eventfd eventfd2
getitimer gettimeofday nanosleep pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 sigprocmask sigreturn
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_TALKING = """
accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old getpeername getsockname getsockopt io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink msgctl msgget msgrcv msgsnd _newselect pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 recv recvfrom
recvmmsg recvmmsg_time64 recvmsg select semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt
shutdown socketpair
"""
#: known, and not for containers
_REFUSED = """
acct adjtimex bpf clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick
init_module ioperm iopl kexec_file_load kexec_load mount mount_setattr move_mount nfsservctl open_by_handle_at open_tree
perf_event_open pivot_root quotactl quotactl_fd reboot setdomainname sethostname setns settimeofday stime swapoff swapon syslog
umount umount2 unshare userfaultfd vhangup
"""
#: what `uname -m` says -> seccomp's name. Alone: a program of 32 bits is ended, and compiling the filter for three tables takes
#: 13 ms of every start
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


@lru_cache
def make_seccomp(machine: str) -> dict[str, object]:
    """`machine`: what `uname -m` says. Made once, and nobody's to change."""
    allowed = sorted({*_FILES.split(), *_MEMORY.split(), *_PROCESSES.split(), *_SIGNALS_AND_TIME.split(), *_TALKING.split()})
    rules: list[dict[str, object]] = [
        _allow(allowed),
        # on these architectures the flags are clone's first argument
        _allow(["clone"], (0, 0, "SCMP_CMP_MASKED_EQ", _NEW_NAMESPACES)),
        *(_allow(["socket"], (0, family, "SCMP_CMP_EQ", 0)) for family in _FAMILIES),
        *(_allow(["personality"], (0, persona, "SCMP_CMP_EQ", 0)) for persona in _PERSONALITIES),
        {"names": sorted(_REFUSED.split()), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": [_ARCHITECTURES[machine]] if machine in _ARCHITECTURES else [],
        "syscalls": rules,
    }


def _allow(names: list[str], argument: tuple[int, int, str, int] | None = None) -> dict[str, object]:
    rule: dict[str, object] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    if argument is None:
        return rule
    index, value, how, mask = argument
    # of a masked comparison libseccomp takes the mask first
    first, second = (mask, value) if how == "SCMP_CMP_MASKED_EQ" else (value, 0)
    return {**rule, "args": [{"index": index, "value": first, "valueTwo": second, "op": how}]}
