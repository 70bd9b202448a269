#include "nowait.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

static int is_ready(int fd, short events) {
    struct pollfd ask = {.fd = fd, .events = events};
    if (poll(&ask, 1, 0) > 0)
        return 1;
    errno = EAGAIN;
    return 0;
}

int64_t avmm_file_system(int fd) {
    struct statfs told;
    return fstatfs(fd, &told) ? -(int64_t)errno : (int64_t)(uint32_t)told.f_type; /* a signed word on some hosts */
}

static int knows_no_nowait(void) { return errno == EOPNOTSUPP || errno == ENOSYS; }

ssize_t avmm_readv_now(int fd, const struct iovec *iov, int n) {
    ssize_t got;
    do
        got = preadv2(fd, iov, n, -1, RWF_NOWAIT);
    while (got < 0 && errno == EINTR);
    if (got >= 0 || !knows_no_nowait())
        return got;
    return is_ready(fd, POLLIN) ? readv(fd, iov, n) : -1;
}

ssize_t avmm_writev_now(int fd, const struct iovec *iov, int n) {
    ssize_t put;
    do
        put = pwritev2(fd, iov, n, -1, RWF_NOWAIT);
    while (put < 0 && errno == EINTR);
    if (put >= 0 || !knows_no_nowait())
        return put;
    return is_ready(fd, POLLOUT) ? writev(fd, iov, n) : -1;
}

int64_t avmm_read_now(int fd, uint8_t *to, uint32_t size) {
    struct iovec one = {to, size};
    ssize_t got = avmm_readv_now(fd, &one, 1);
    return got < 0 ? -errno : got;
}

int avmm_event_take(int fd) {
    uint64_t value;
    int64_t got = avmm_read_now(fd, (uint8_t *)&value, sizeof value);
    return got == sizeof value ? 1 : got == -EAGAIN ? 0 : got < 0 ? (int)got : -EINVAL;
}

/* eventfd's write knows neither RWF_NOWAIT nor MSG_DONTWAIT, but the kernel signals eventfds itself at the end of an asynchronous
 * request, and it never waits there (eventfd_signal): so a request for no bytes, with the eventfd to be told. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static aio_context_t context;
static pid_t owner; /* of the context: a child of ours has its number, but not the kernel's side of it */

static int set_up(void) {
    if (owner == getpid())
        return 0;
    context = 0;
    if (syscall(SYS_io_setup, 8u, &context) < 0)
        return -errno;
    owner = getpid();
    return 0;
}

/* `nothing` is a file that can be asked for no bytes. */
static int submit(int fd, int nothing) {
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD,
                           .aio_fildes = (uint32_t)nothing,
                           .aio_flags = IOCB_FLAG_RESFD,
                           .aio_resfd = (uint32_t)fd};
    struct iocb *requests[] = {&request};
    struct io_event done[8];
    struct timespec at_once = {0};
    int put = (int)syscall(SYS_io_submit, context, 1L, requests);
    int error = put == 1 ? 0 : errno;
    if (!error)
        syscall(SYS_io_getevents, context, 1L, 8L, done, &at_once);
    return -error;
}

/* A kernel without asynchronous requests: the flag is set again right before. Whoever is at war with us may still win. */
static int write_flagged(int fd) {
    uint64_t one = 1;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        return -errno;
    return write(fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0;
}

int avmm_event_signal(int fd) {
    int nothing = memfd_create("aiovmm-nothing", MFD_CLOEXEC); /* not kept: this is rare, and descriptors are counted */
    if (nothing < 0)
        return write_flagged(fd);
    pthread_mutex_lock(&lock);
    int done = set_up();
    if (!done)
        done = submit(fd, nothing);
    pthread_mutex_unlock(&lock);
    close(nothing);
    return done == -ENOSYS || done == -EAGAIN || done == -ENOMEM ? write_flagged(fd) : done;
}
