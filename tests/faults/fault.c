/* A host whose Nth call of a kind fails. Preloaded: it stands between a program and the C library.
 *
 * From within, fault_arm(kind, nth, error) has the nth call of that kind from then on fail once with `error`, and fault_calls() says
 * how many there have been. A transfer that "fails" with 0 is a short one: it is done in part, as a signal or a full disk has it. For a program that knows nothing of it AIOVMM_FAULT="KIND NTH ERROR" does that, from when it opens
 * /dev/kvm. What vCPU threads ask of KVM in their run loop is not counted: that is as often as chance has it. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

enum kind { OPEN, IOCTL, MMAP, EVENTFD, EPOLL_CTL, SOCKET, ACCEPT, PREAD, PWRITE, THREAD, TIMERFD, MEMFD, TRUNCATE, URING, DUP, STACK };

#define KVM_RUN 0xAE80ul
#define ARENA (1ul << 20) /* of Python's allocator, which maps memory at any time */
/* Of each Python thread: the first it maps before its first step, and it is a kind of its own; others at any time. */
#define PIECE_OF_STACK (16ul << 10)

static atomic_int kind = -1, error;
static atomic_long calls, nth;
static int waiting = -1; /* the kind, until /dev/kvm is opened */

void fault_arm(int what, long at, int number) {
    atomic_store(&kind, -1);
    atomic_store(&calls, 0), atomic_store(&nth, at), atomic_store(&error, number);
    atomic_store(&kind, what);
}

long fault_calls(void) { return atomic_load(&calls); }

__attribute__((constructor)) static void from_environment(void) {
    const char *text = getenv("AIOVMM_FAULT");
    long at;
    int what, number;
    if (!text || sscanf(text, "%d %ld %d", &what, &at, &number) != 3)
        return;
    waiting = what;
    atomic_store(&nth, at), atomic_store(&error, number);
}

/* Whether this call is the one. */
static bool fails(enum kind what) {
    if (atomic_load(&kind) != (int)what || atomic_fetch_add(&calls, 1) + 1 != atomic_load(&nth))
        return false;
    errno = atomic_load(&error);
    return true;
}

#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (!real)                                                                                                         \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define MODE(flags, last)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list more;                                                                                                  \
        va_start(more, last);                                                                                          \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

static int opened(const char *path, int flags, mode_t mode) {
    REAL(int, "open64", const char *, int, ...);
    if (waiting >= 0 && !strcmp(path, "/dev/kvm")) {
        atomic_store(&kind, waiting);
        waiting = -1;
    }
    return fails(OPEN) ? -1 : real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    return opened(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, ...);
    MODE(flags, flags)
    return fails(OPEN) ? -1 : real(at, path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...) {
    static _Thread_local bool runs; /* this thread has just left the guest */
    REAL(int, "ioctl", int, unsigned long, ...);
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    bool noted = runs;
    runs = request == KVM_RUN;
    bool of_kvm = (request >> 8 & 0xff) == 0xAE; /* an event loop's own (FIONBIO) do not fail anywhere */
    return of_kvm && !runs && !noted && fails(IOCTL) ? -1 : real(fd, request, argument);
}

static void *mapped(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    REAL(void *, "mmap64", void *, size_t, int, int, int, off_t);
    static _Thread_local bool has_stack;
    bool stack = fd < 0 && size == PIECE_OF_STACK, of_python = stack || (fd < 0 && size == ARENA);
    bool first = stack && !has_stack;
    has_stack |= stack;
    return (first ? fails(STACK) : !of_python && fails(MMAP)) ? MAP_FAILED : real(at, size, protection, flags, fd, offset);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapped(at, size, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapped(at, size, protection, flags, fd, offset);
}

int eventfd(unsigned count, int flags) {
    REAL(int, "eventfd", unsigned, int);
    return fails(EVENTFD) ? -1 : real(count, flags);
}

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event) {
    REAL(int, "epoll_ctl", int, int, int, struct epoll_event *);
    return what == EPOLL_CTL_ADD && fails(EPOLL_CTL) ? -1 : real(epoll, what, fd, event);
}

int socket(int domain, int type, int protocol) {
    REAL(int, "socket", int, int, int);
    return fails(SOCKET) ? -1 : real(domain, type, protocol);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    REAL(int, "accept4", int, struct sockaddr *, socklen_t *, int);
    return fails(ACCEPT) ? -1 : real(fd, address, size, flags);
}

static size_t half(size_t size) { return size - size / 2; } /* of one byte, that */

#define POSITIONED(name, buffer, what)                                                                                 \
    ssize_t name(int fd, buffer data, size_t size, off_t offset) {                                                     \
        REAL(ssize_t, #name, int, buffer, size_t, off_t);                                                              \
        if (!fails(what))                                                                                              \
            return real(fd, data, size, offset);                                                                       \
        return errno ? -1 : real(fd, data, half(size), offset);                                                        \
    }
POSITIONED(pread, void *, PREAD)
POSITIONED(pread64, void *, PREAD)
POSITIONED(pwrite, const void *, PWRITE)
POSITIONED(pwrite64, const void *, PWRITE)

/* What is left of the parts of a short transfer: half of the first. */
static struct iovec first_half(const struct iovec *parts) { return (struct iovec){parts->iov_base, half(parts->iov_len)}; }

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset) {
    REAL(ssize_t, "preadv", int, const struct iovec *, int, off_t);
    if (!fails(PREAD))
        return real(fd, parts, count, offset);
    struct iovec part = first_half(parts);
    return errno ? -1 : real(fd, &part, 1, offset);
}

ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    REAL(ssize_t, "preadv2", int, const struct iovec *, int, off_t, int);
    if (!fails(PREAD))
        return real(fd, parts, count, offset, flags);
    struct iovec part = first_half(parts);
    return errno ? -1 : real(fd, &part, 1, offset, flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    REAL(ssize_t, "pwritev2", int, const struct iovec *, int, off_t, int);
    if (!fails(PWRITE))
        return real(fd, parts, count, offset, flags);
    struct iovec part = first_half(parts);
    return errno ? -1 : real(fd, &part, 1, offset, flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *argument) {
    REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return fails(THREAD) ? errno : real(thread, how, start, argument);
}

static atomic_long shift; /* seconds that the host's clock has been set by; timers and clocks of other kinds do not know */

void fault_set_clock(long seconds) { atomic_store(&shift, seconds); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += atomic_load(&shift);
    return result;
}

int timerfd_create(int clock, int flags) {
    REAL(int, "timerfd_create", int, int);
    return fails(TIMERFD) ? -1 : real(clock, flags);
}

int memfd_create(const char *name, unsigned flags) {
    REAL(int, "memfd_create", const char *, unsigned);
    return fails(MEMFD) ? -1 : real(name, flags);
}

int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    return fails(TRUNCATE) ? -1 : real(fd, size);
}

long syscall(long number, ...) {
    REAL(long, "syscall", long, ...);
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(more, long);
    va_end(more);
    return number == SYS_io_uring_setup && fails(URING) ? -1 : real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int dup3(int from, int to, int flags) {
    REAL(int, "dup3", int, int, int);
    return fails(DUP) ? -1 : real(from, to, flags);
}
