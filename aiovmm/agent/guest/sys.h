/* System calls of Linux, for a program without a C library: each returns its result, or an errno below zero.
 *
 * Structures and numbers are the kernel's own headers' (linux-libc-dev); the few that those keep to themselves are at the end. Only
 * calls that both x86-64 and arm64 have are used. A build with a C library (-DHOSTED: for sanitizers) makes the same calls.
 */
#ifndef AGENT_SYS_H
#define AGENT_SYS_H

#include <asm/ioctls.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <asm/termbits.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <stddef.h>
#include <stdint.h>

#if defined(FUZZED) /* tests/fuzz/native/fuzz_guest_agent.c is the kernel */
long sys6(long n, long a, long b, long c, long d, long e, long f);
#elif defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the agent runs on x86-64 and arm64"
#endif

/* SYS(read, fd, data, size): any number of arguments up to six, each a pointer or a number. */
#define SYS_L(x) ((long)(x))
#define SYS_1(n) sys6(n, 0, 0, 0, 0, 0, 0)
#define SYS_2(n, a) sys6(n, SYS_L(a), 0, 0, 0, 0, 0)
#define SYS_3(n, a, b) sys6(n, SYS_L(a), SYS_L(b), 0, 0, 0, 0)
#define SYS_4(n, a, b, c) sys6(n, SYS_L(a), SYS_L(b), SYS_L(c), 0, 0, 0)
#define SYS_5(n, a, b, c, d) sys6(n, SYS_L(a), SYS_L(b), SYS_L(c), SYS_L(d), 0, 0)
#define SYS_6(n, a, b, c, d, e) sys6(n, SYS_L(a), SYS_L(b), SYS_L(c), SYS_L(d), SYS_L(e), 0)
#define SYS_7(n, a, b, c, d, e, f) sys6(n, SYS_L(a), SYS_L(b), SYS_L(c), SYS_L(d), SYS_L(e), SYS_L(f))
#define SYS_PICK(_1, _2, _3, _4, _5, _6, _7, name, ...) name
#define SYS(name, ...) SYS_CALL(__NR_##name, ##__VA_ARGS__)
#define SYS_CALL(...) SYS_PICK(__VA_ARGS__, SYS_7, SYS_6, SYS_5, SYS_4, SYS_3, SYS_2, SYS_1, )(__VA_ARGS__)

static inline long sys_open(const char *path, int flags, int mode)
{
    return SYS(openat, AT_FDCWD, path, flags | O_CLOEXEC, mode);
}

static inline long sys_fork(void)
{
    return SYS(clone, SIGCHLD, 0, 0, 0, 0);
}

static inline void sys_close(int fd)
{
    if (fd >= 0)
        SYS(close, fd);
}

_Noreturn static inline void sys_exit(int status)
{
    for (;;)
        SYS(exit_group, status);
}

/* Whole pages of zeros, which cost memory when they are touched; NULL if there are none. */
static inline void *pages_new(size_t size)
{
    long at = SYS(mmap, 0, size, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);
    return at < 0 && at > -4096 ? NULL : (void *)at;
}

static inline void pages_free(void *at, size_t size)
{
    if (at)
        SYS(munmap, at, size);
}

enum { AF_UNIX_ = 1, AF_INET_ = 2, AF_INET6_ = 10, AF_VSOCK_ = 40 };
enum { SOCK_STREAM_ = 1, SHUT_WR_ = 1, SOL_SOCKET_ = 1, SO_REUSEADDR_ = 2, SO_ERROR_ = 4 };
enum { P_PID_ = 1, WNOHANG_ = 1, WEXITED_ = 4, WNOWAIT_ = 0x01000000 };

struct vsock_address {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t zero[4];
};

/* What waitid tells, of siginfo_t. */
struct child_info {
    int32_t signo, error, code, pad, pid, uid, status, rest[25];
};

struct limit {
    uint64_t soft, hard;
};

#endif
