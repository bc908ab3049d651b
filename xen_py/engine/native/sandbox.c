// SPDX-License-Identifier: GPL-2.0-only
//
// What a VM process gives up before its guest's first instruction, where only C can say it: system calls.
//
// The filter is a list of what the running loop needs (memory, waiting, its two eventfds and its socket, time,
// threads of its own); everything else answers EPERM: no file can be opened, no socket made, no process started.
// A refused call is an error and not a death, so that Python's own attempts to read a source line for a traceback
// do no harm. Sources: Linux's seccomp(2), prctl(2), include/uapi/linux/{seccomp,filter,audit}.h.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#else
#error "the system call filter knows x86-64 and aarch64"
#endif

static const uint32_t allowed[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_close, SYS_lseek, SYS_fstat, SYS_dup,
    SYS_recvmsg, SYS_sendmsg, SYS_recvfrom, SYS_sendto,
    SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
    SYS_eventfd2, SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
    SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk, SYS_fallocate, SYS_membarrier,
    SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_sched_yield, SYS_exit, SYS_exit_group,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_sigaltstack, SYS_restart_syscall,
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_getrusage,
    SYS_getpid, SYS_gettid, SYS_getrandom, SYS_sched_getaffinity,
#if defined(__x86_64__)
    SYS_poll, SYS_select, SYS_epoll_wait, SYS_time,
#endif
};

// What importing a Python module needs beside: looking for files and reading them, never writing or making one.
static const uint32_t reading[] = {
    SYS_newfstatat, SYS_statx, SYS_getdents64, SYS_readlinkat, SYS_getcwd, SYS_faccessat, SYS_faccessat2, SYS_pread64,
    SYS_uname,
#if defined(__x86_64__)
    SYS_stat, SYS_lstat, SYS_readlink, SYS_access,
#endif
};

// What a user-mode network stack needs beside: sockets of the Internet families, and what is done with them.
static const uint32_t networking[] = {
    SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_shutdown, SYS_getsockname, SYS_getpeername,
    SYS_setsockopt, SYS_getsockopt, SYS_ioctl, SYS_fcntl,
};

#define NETWORKING ((int)(sizeof networking / sizeof networking[0]))
#define READING ((int)(sizeof reading / sizeof reading[0]))
#define ALLOWED ((int)(sizeof allowed / sizeof allowed[0]))
#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, field)
#define IF_EQ(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

// Install the filter for this process for good; with `may_read_files` files can be opened for reading, with
// `may_use_network` Internet sockets be made. 0, or -errno.
int xenpy_sandbox_filter(int may_read_files, int may_use_network)
{
    struct sock_filter code[64 + 2 * (ALLOWED + READING + NETWORKING)];
    unsigned short n = 0;
    const uint32_t thread = CLONE_VM | CLONE_THREAD | CLONE_SIGHAND;

    code[n++] = (struct sock_filter)LOAD(FIELD(arch));
    code[n++] = (struct sock_filter)IF_EQ(FILTER_ARCH, 1, 0);
    code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)LOAD(FIELD(nr));
    for (int i = 0; i < ALLOWED; i++) {
        code[n++] = (struct sock_filter)IF_EQ(allowed[i], 0, 1);
        code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    }
    for (int i = 0; may_read_files && i < READING; i++) {
        code[n++] = (struct sock_filter)IF_EQ(reading[i], 0, 1);
        code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    }
    if (may_read_files) {
        const uint32_t writing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;
        code[n++] = (struct sock_filter)IF_EQ(SYS_openat, 0, 4);
        code[n++] = (struct sock_filter)LOAD(FIELD(args[2]));
        code[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, writing);
        code[n++] = (struct sock_filter)IF_EQ(0, 0, 1);
        code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
        code[n++] = (struct sock_filter)LOAD(FIELD(nr)); // the number again, for what follows
    }
    for (int i = 0; may_use_network && i < NETWORKING; i++) {
        code[n++] = (struct sock_filter)IF_EQ(networking[i], 0, 1);
        code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    }
    if (may_use_network) {
        code[n++] = (struct sock_filter)IF_EQ(SYS_socket, 0, 5);
        code[n++] = (struct sock_filter)LOAD(FIELD(args[0]));
        code[n++] = (struct sock_filter)IF_EQ(AF_INET, 1, 0);
        code[n++] = (struct sock_filter)IF_EQ(AF_INET6, 0, 1);
        code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
        code[n++] = (struct sock_filter)LOAD(FIELD(nr));
    }
    // glibc falls back to clone, whose flags a filter can read: threads yes, processes no
    code[n++] = (struct sock_filter)IF_EQ(SYS_clone3, 0, 1);
    code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS);
    code[n++] = (struct sock_filter)IF_EQ(SYS_clone, 0, 4);
    code[n++] = (struct sock_filter)LOAD(FIELD(args[0]));
    code[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, thread);
    code[n++] = (struct sock_filter)IF_EQ(thread, 0, 6);
    code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    // to itself only: signals (abort, a thread's end), and the engine's way of looking at memory without a fault
    code[n++] = (struct sock_filter)IF_EQ(SYS_process_vm_readv, 1, 0);
    code[n++] = (struct sock_filter)IF_EQ(SYS_tgkill, 0, 3);
    code[n++] = (struct sock_filter)LOAD(FIELD(args[0]));
    code[n++] = (struct sock_filter)IF_EQ((uint32_t)getpid(), 0, 1);
    code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | EPERM);

    struct sock_fprog program = { .len = n, .filter = code };
    // all threads at once, should there be others
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    return result == 0 ? 0 : result < 0 ? -errno : -EBUSY;
}

// No set-user-id program can raise this process again; the filter needs it too. 0, or -errno.
int xenpy_no_new_privileges(void)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
}

// Be killed when the parent ends; -ESRCH if it already has. `parent` is the pid the caller knows it by.
int xenpy_die_with_parent(int parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
        return -errno;
    return getppid() == parent ? 0 : -ESRCH;
}

// Leave the network and System V IPC of the host for empty ones of our own. 0, or -errno where that is not allowed.
int xenpy_leave_namespaces(void)
{
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC))
        return -errno;
    // a change of capabilities makes a process undumpable, and its own user could no longer look at its memory figures
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) ? -errno : 0;
}

// The name that ps and top show (15 bytes).
int xenpy_set_name(const char *name)
{
    return prctl(PR_SET_NAME, name, 0, 0, 0) ? -errno : 0;
}
