/* aiovmm-agent: runs commands in a guest for the host's program, over vsock. See docs/agent.md.
 *
 *   aiovmm-agent                     listen at vsock port 2576; as process 1 be the guest's init as well
 *   aiovmm-agent --unix PATH         listen at a unix socket instead, for tests
 */
#include "agent.h"

enum { HOST_CID = 2, ANY_CID = -1 };

static int is_unix;

static int listen_vsock(void)
{
    struct vsock_address address = {AF_VSOCK_, 0, AGENT_PORT, (uint32_t)ANY_CID, {0}};
    int fd = (int)SYS(socket, AF_VSOCK_, SOCK_STREAM_ | O_NONBLOCK | O_CLOEXEC, 0);
    long result = fd < 0 ? fd : SYS(bind, fd, &address, sizeof address);

    if (result >= 0)
        result = SYS(listen, fd, LINKS_MAX);
    if (result < 0) {
        sys_close(fd);
        return (int)result;
    }
    return fd;
}

static int listen_unix(const char *path)
{
    struct {
        uint16_t family;
        char path[108];
    } address = {AF_UNIX_, {0}};
    int fd = (int)SYS(socket, AF_UNIX_, SOCK_STREAM_ | O_NONBLOCK | O_CLOEXEC, 0);
    long result = fd < 0 ? fd : -ENAMETOOLONG;

    if (fd >= 0 && text_join(address.path, sizeof address.path, path, "")) {
        SYS(umask, 077);
        SYS(unlinkat, AT_FDCWD, path, 0); /* the one before us may have left it */
        result = SYS(bind, fd, &address, sizeof address);
    }
    if (result >= 0)
        result = SYS(listen, fd, LINKS_MAX);
    return result < 0 ? (int)result : fd;
}

/* The vsock driver may be loaded after us. */
static int listen_when_possible(void)
{
    int fd, told = 0;

    while ((fd = listen_vsock()) < 0) {
        struct __kernel_timespec pause = {0, 20 * 1000000};
        if (fd == -EADDRINUSE) {
            note("vsock port 2576 is taken: another agent runs");
            sys_exit(1);
        }
        if (told++ == 250)
            note("there is no vsock yet: is the module vmw_vsock_virtio_transport loaded?");
        SYS(ppoll, 0, 0, &pause, 0, 8);
    }
    return fd;
}

/* Only the host: by the loopback transport a program in the guest could come here, too, and be root. */
static void accept_host(int listener)
{
    struct vsock_address peer = {0};
    uint32_t size = sizeof peer;
    int fd = (int)SYS(accept4, listener, is_unix ? NULL : &peer, is_unix ? NULL : &size, O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return;
    if (is_unix || (peer.family == AF_VSOCK_ && peer.cid == HOST_CID))
        link_open(fd);
    else
        sys_close(fd);
}

static void serve(int listener)
{
    static struct pollfd fds[1 + LINKS_MAX + 5 * CHANNELS_MAX];
    int more = 0;

    for (;;) {
        struct __kernel_timespec now = {0, 0};
        int count = 1;
        fds[0] = (struct pollfd){listener, POLLIN, 0};
        for (struct link *link = links; link < links + LINKS_MAX; link++)
            if (link->in) {
                link->pollfd = count;
                fds[count++] = (struct pollfd){link->fd, (short)(POLLIN | (link->out_end ? POLLOUT : 0)), 0};
            }
        count = channels_poll(fds, count);
        if (SYS(ppoll, fds, count, more ? &now : NULL, 0, 8) < 0)
            continue;
        channels_ready(fds);
        more = 0;
        for (struct link *link = links; link < links + LINKS_MAX; link++) {
            if (!link->in)
                continue;
            if (link->pollfd >= 0 && fds[link->pollfd].revents & (POLLIN | POLLHUP | POLLERR))
                link_read(link);
            if (link->out_end)
                link_write(link);
            if (!link->broken) {
                int yes = channels_emit(link);
                link_write(link);
                more |= yes && !link->out_end; /* else POLLOUT says when */
            }
            link->pollfd = -1;
            if (link->broken)
                link_close(link);
        }
        if (fds[0].revents)
            accept_host(listener);
    }
}

static void begin(int argc, char **argv)
{
    static const unsigned long ignore[4] = {1 /* SIG_IGN */};
    struct limit files;
    int listener;

    for (int fd = 0; fd < 3; fd++) /* none of ours may become one of the standard three */
        if (SYS(fcntl, fd, F_GETFD) < 0)
            sys_open("/dev/null", O_RDWR, 0);
    SYS(rt_sigaction, 13 /* SIGPIPE */, ignore, 0, 8);
    SYS(prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, &own_files);
    files = (struct limit){own_files.hard, own_files.hard};
    SYS(prlimit64, 0, 7, &files, 0);
    is_unix = argc == 3 && text_is(argv[1], "--unix");
    if (argc != 1 && !is_unix) {
        note("usage: aiovmm-agent [--unix PATH]");
        sys_exit(2);
    }
    if (SYS(getpid) == 1)
        init_begin();
    listener = is_unix ? listen_unix(argv[2]) : listen_when_possible();
    if (listener < 0) {
        note("cannot listen at the unix socket");
        sys_exit(1);
    }
    serve(listener);
}

#ifdef HOSTED
int main(int argc, char **argv)
{
    begin(argc, argv);
    return 0;
}
#else
void begin_on_stack(const long *stack)
{
    begin((int)stack[0], (char **)(stack + 1));
    sys_exit(1);
}

/* The kernel starts a program with its arguments on the stack, and no frame to return to. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin_on_stack\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tb begin_on_stack\n");
#endif
#endif
