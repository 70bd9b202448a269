/* The agent by itself: frames of a host, files of a guest and a kernel that answers as it likes, all of them the input's. Its loop
 * runs as it is, until the input is used up; then its connections end, and nothing of theirs may be left: no descriptor, no page.
 *
 * Where a fork is the child's the input goes on as that, up to its end. */
#define main agent_main
#include "main.c"
#undef main

/* Of a C library, whose own headers do not go with the kernel's, which the agent is made with. */
typedef long jmp_buf[64];
int _setjmp(jmp_buf at) __attribute__((returns_twice));
_Noreturn void longjmp(jmp_buf to, int value);
void *mmap(void *at, size_t size, int access, int flags, int fd, long offset);
int madvise(void *at, size_t size, int advice);
/* And of the address sanitizer. */
void __asan_poison_memory_region(void const volatile *at, size_t size);
void __asan_unpoison_memory_region(void const volatile *at, size_t size);

#define EXPECT(what)                                                                                                   \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            __builtin_trap();                                                                                          \
    } while (0)

enum { PAGE = 4096, PORT = 3, MOST_OPEN = 64, FDS = PORT + 2 + MOST_OPEN, MOST_CALLS = 1000 };
#define ARENA (640ul << 20) /* for the largest there is at each call */
enum { FREE, OPEN, LINK };

static const uint8_t *input_at, *input_end;
static uint8_t fds[FDS];
static int open_count, in_child, calls;
static uint8_t *arena; /* what the agent maps, up to `arena_used`, in `pages` pieces as of now */
static size_t arena_used, pages;
static jmp_buf over;
static struct {
    uint8_t bytes[FRAME_HEADER + FRAME_MAX];
    size_t at, end;
    int greeted;
} host[FDS];

static uint64_t take(unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && input_at < input_end; i++)
        value |= (uint64_t)*input_at++ << 8 * i;
    return value;
}

static unsigned below(unsigned n) { return (unsigned)take(n > 256 ? 2 : 1) % n; }

static size_t take_some(uint8_t *to, size_t most) {
    size_t left = (size_t)(input_end - input_at), size = left < most ? left : most;
    memcpy(to, input_at, size);
    input_at += size;
    return size;
}

static long new_fd(int kind) {
    if (open_count >= MOST_OPEN)
        return -EMFILE;
    for (int fd = PORT + 1; fd < FDS; fd++)
        if (fds[fd] == FREE) {
            fds[fd] = (uint8_t)kind;
            host[fd].at = host[fd].end = 0;
            host[fd].greeted = 0;
            open_count++;
            return fd;
        }
    return -EMFILE;
}

static long close_fd(long fd) {
    if (in_child)
        return 0;
    EXPECT(fd > PORT && fd < FDS && fds[fd] != FREE); /* else it is somebody else's by now */
    fds[fd] = FREE;
    open_count--;
    return 0;
}

/* ---- what a host says ---- */

static size_t text_of(uint8_t *to, size_t most) {
    size_t size = take_some(to, below(16) < most ? below(16) : 0);
    for (size_t i = 0; i < size; i++)
        to[i] = to[i] ? to[i] : 'x';
    to[size] = 0;
    return size + 1;
}

/* One that can be carried out, mostly, and at times of more than there is room for. */
static size_t start_of(uint8_t *to) {
    unsigned argc = 1 + below(3), envc = below(8), limits = below(3);
    uint8_t *at = to + START_HEADER;
    if (envc == 7)
        envc = 4000 + below(8192);
    memset(to, 0, START_HEADER);
    put32(to, below(16));
    for (int i = 0; i < 3; i++)
        to[4 + i] = (uint8_t)below(4);
    put16(to + 8, below(256));
    put16(to + 10, below(256));
    put32(to + 12, (uint32_t)take(3));
    put32(to + 16, (uint32_t)take(3));
    put16(to + 20, argc);
    put16(to + 22, envc);
    put16(to + 24, limits);
    for (unsigned i = 0; i < limits * START_LIMIT; i++)
        *at++ = (uint8_t)take(1);
    for (unsigned i = 0; i < 2 + argc; i++)
        at += text_of(at, 64);
    for (unsigned i = 0; i < envc; i++, at += 4)
        memcpy(at, "A=b", 4);
    return (size_t)(at - to) - (below(32) == 31);
}

static void next_frame(int fd) {
    uint8_t *frame = host[fd].bytes, *payload = frame + FRAME_HEADER;
    unsigned kind = host[fd].greeted++ ? below(PING + 2) : HELLO, channel = below(8);
    size_t size = 0;
    if (kind == HELLO && host[fd].greeted == 1) {
        memcpy(payload, WIRE_MAGIC, 8);
        put16(payload + 8, WIRE_VERSION);
        size = 10;
    } else if (kind == START) {
        size = start_of(payload);
    } else if (kind == DATA && below(8) == 7) {
        size = below(4) * 65536;
        memset(payload, 'd', size);
    } else {
        size = take_some(payload, below(40));
    }
    put32(frame, below(64) == 63 ? (uint32_t)take(4) : (uint32_t)size);
    put32(frame + 4, channel == 7 ? 0x80000000u | below(4) : channel);
    frame[8] = (uint8_t)kind;
    frame[9] = (uint8_t)below(4);
    put16(frame + 10, 0);
    host[fd].at = 0;
    host[fd].end = FRAME_HEADER + size;
}

static long read_link(int fd, uint8_t *to, size_t most) {
    if (host[fd].at == host[fd].end) {
        if (input_at == input_end || below(64) == 63)
            return 0;
        next_frame(fd);
    }
    size_t size = host[fd].end - host[fd].at;
    if (size > most)
        size = most;
    if (size > 1 && below(8) == 7) /* in pieces */
        size = 1 + below((unsigned)size);
    memcpy(to, host[fd].bytes + host[fd].at, size);
    host[fd].at += size;
    return (long)size;
}

/* ---- the kernel ---- */

static long read_any(long fd, uint8_t *to, size_t most) {
    if (fd == PORT || fd < 0 || fd >= FDS || (!in_child && fds[fd] == FREE))
        return -EBADF;
    if (fds[fd] == LINK)
        return read_link((int)fd, to, most);
    switch (below(4)) {
    case 0:
        return 0;
    case 1:
        return -(long)below(134);
    case 2:
        return (long)take_some(to, most < 40 ? most : 40);
    default:
        most = most > 4096 && below(16) ? 4096 : most;
        memset(to, 'r', most);
        return (long)most;
    }
}

static long poll_all(struct pollfd *wanted, long count) {
    if (input_at == input_end || in_child)
        longjmp(over, 1);
    for (long i = 0; i < count; i++) {
        EXPECT(wanted[i].fd == PORT || (wanted[i].fd > PORT && wanted[i].fd < FDS && fds[wanted[i].fd] != FREE));
        wanted[i].revents = below(3) ? (short)(wanted[i].events | (below(8) == 7 ? POLLHUP : 0)) : 0;
    }
    return 1;
}

static long accept_any(struct vsock_address *peer) {
    long fd = new_fd(peer ? LINK : OPEN);
    if (peer && fd >= 0)
        *peer = (struct vsock_address){AF_VSOCK_, 0, 1, below(16) == 15 ? 1 : HOST_CID, {0}};
    return fd;
}

static long a_pair(int *to) {
    long first = new_fd(OPEN), second = first < 0 ? first : new_fd(OPEN);
    if (second < 0) {
        if (first >= 0)
            close_fd(first);
        return second;
    }
    to[0] = (int)first, to[1] = (int)second;
    return 0;
}

static long fork_any(void) {
    if (below(16) == 15)
        return -EAGAIN;
    if (below(4) == 3)
        return in_child = 1, 0;
    return 1000 + below(4);
}

static long control(long fd, long request, void *to) {
    (void)fd;
    if (request == TIOCGPTPEER)
        return new_fd(OPEN);
    if (request == FIONREAD)
        *(int *)to = (int)take(2);
    return below(8) == 7 ? -EIO : 0;
}

static long waited(struct child_info *info) {
    info->pid = below(2) ? 1000 : 0;
    info->code = 1 + (int)below(3);
    info->status = (int)below(256);
    return 0;
}

/* Of one input each has addresses of its own, which are nobody's before and after; behind it is a page that is nobody's, too. To let
 * the kernel clear what was touched is much cheaper than the sanitizer's allocator, which maps each anew. */
static long map_pages(size_t size) {
    size_t most = (size + 2 * PAGE - 1) & ~(size_t)(PAGE - 1);
    if (below(64) == 63)
        return -ENOMEM;
    EXPECT(arena_used + most <= ARENA);
    uint8_t *at = arena + arena_used;
    arena_used += most;
    __asan_unpoison_memory_region(at, size);
    __asan_poison_memory_region(at + size, most - size);
    pages++;
    return (long)at;
}

static long unmap_pages(uint8_t *at, size_t size) {
    __asan_poison_memory_region(at, size);
    pages--;
    return 0;
}

long sys6(long n, long a, long b, long c, long d, long e, long f) {
    (void)d, (void)e, (void)f;
    if (++calls > MOST_CALLS)
        longjmp(over, 1);
    switch (n) {
    case __NR_read:
        return read_any(a, (uint8_t *)b, (size_t)c);
    case __NR_write:
        return below(16) == 15 ? -EAGAIN : below(16) == 15 ? -EPIPE : c > 1 && below(4) == 3 ? 1 + (long)below((unsigned)c) : c;
    case __NR_close:
        return close_fd(a);
    case __NR_mmap:
        return map_pages((size_t)b);
    case __NR_munmap:
        return unmap_pages((uint8_t *)a, (size_t)b);
    case __NR_ppoll:
        return a ? poll_all((struct pollfd *)a, b) : 0;
    case __NR_accept4:
        return accept_any((struct vsock_address *)b);
    case __NR_pipe2:
        return below(16) == 15 ? -EMFILE : a_pair((int *)a);
    case __NR_openat:
    case __NR_socket:
    case __NR_pidfd_open:
        return below(16) == 15 ? -EMFILE : new_fd(OPEN);
    case __NR_fcntl:
        return b == F_DUPFD_CLOEXEC ? new_fd(OPEN) : 0;
    case __NR_connect:
        return below(4) == 3 ? -ECONNREFUSED : -EINPROGRESS;
    case __NR_getsockopt:
        *(int *)d = below(2) ? ECONNREFUSED : 0;
        return 0;
    case __NR_clone:
        return fork_any();
    case __NR_ioctl:
        return control(a, b, (void *)c);
    case __NR_waitid:
        return waited((struct child_info *)c);
    case __NR_execve:
        return -(long)(1 + below(40));
    case __NR_getdents64:
    case __NR_splice:
        return 0;
    case __NR_exit_group:
        longjmp(over, 1);
    default:
        return below(8) == 7 ? -EINVAL : 0;
    }
}

/* ---- an input ---- */

static void end_all(void) {
    static struct pollfd polled[1 + LINKS_MAX + 5 * CHANNELS_MAX];
    static const uint8_t exited[] = {1, 0};
    int count = 1, was_child = in_child;
    in_child = 0;
    for (struct link *link = links; link < links + LINKS_MAX; link++)
        if (link->in)
            link_close(link);
    /* In each round one of the processes that are left has ended. */
    for (int round = 0; round < CHANNELS_MAX + 8 && (count = channels_poll(polled, 0)); round++) {
        for (int i = 0; i < count; i++)
            polled[i].revents = POLLIN | POLLHUP;
        input_at = exited, input_end = exited + 2; /* waitid says so, and all else is zero */
        channels_ready(polled);
    }
    EXPECT(count == 0);
    EXPECT(pages == 0);
    if (arena_used)
        EXPECT(madvise(arena, arena_used, 4 /* MADV_DONTNEED: zeros */) == 0);
    arena_used = 0;
    EXPECT(was_child || open_count == 0); /* of what it was to have the agent has not heard */
    memset(fds, FREE, sizeof fds);
    open_count = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!arena)
        EXPECT((arena = mmap(NULL, ARENA, 3, 0x4022 /* private, anonymous, not accounted for */, -1, 0)) != (void *)-1);
    input_at = data, input_end = data + size;
    calls = 0;
    if (!_setjmp(over))
        serve(PORT);
    calls = -1000000;
    end_all();
    return 0;
}
