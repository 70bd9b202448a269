/* The connections to the host: frames in, frames out, each through one buffer of fixed size. */
#include "agent.h"

struct link links[LINKS_MAX];

static void greet(struct link *link)
{
    struct __kernel_timespec now = {0, 0};
    uint8_t hello[40];

    SYS(clock_gettime, 0, &now);
    memcpy(hello, WIRE_MAGIC, 8);
    put16(hello + 8, WIRE_VERSION);
    put16(hello + 10, (uint32_t)is_init);
    put32(hello + 12, CHANNELS_MAX);
    put32(hello + 16, STDIN_WINDOW);
    put32(hello + 20, FRAME_MAX);
    put64(hello + 24, (uint64_t)now.tv_sec);
    put32(hello + 32, (uint32_t)now.tv_nsec);
    put32(hello + 36, 0);
    link_say(link, 0, HELLO, 0, hello, sizeof hello);
}

void link_open(int fd)
{
    struct link *link = links;

    while (link < links + LINKS_MAX && link->in)
        link++;
    if (link < links + LINKS_MAX) {
        memset(link, 0, sizeof *link);
        link->in = pages_new(FRAME_HEADER + FRAME_MAX + OUT_SIZE);
    }
    if (link == links + LINKS_MAX || !link->in) {
        sys_close(fd);
        return;
    }
    link->out = link->in + FRAME_HEADER + FRAME_MAX;
    link->fd = fd;
    link->pollfd = -1;
    SYS(fcntl, fd, F_SETFL, O_RDWR | O_NONBLOCK);
    greet(link);
}

void link_close(struct link *link)
{
    channels_drop(link);
    sys_close(link->fd);
    pages_free(link->in, FRAME_HEADER + FRAME_MAX + OUT_SIZE);
    link->in = link->out = NULL;
}

/* -- out ----------------------------------------------------------------------------------------------------------------------- */

size_t link_room(const struct link *link)
{
    return OUT_SIZE - link->out_end;
}

static void header_put(struct link *link, uint32_t channel, int kind, int stream, size_t size)
{
    uint8_t *at = link->out + link->out_end;

    put32(at, (uint32_t)size);
    put32(at + 4, channel);
    at[8] = (uint8_t)kind;
    at[9] = (uint8_t)stream;
    put16(at + 10, 0);
    link->out_end += FRAME_HEADER + size;
}

/* A small frame; 0 if there is no room for it now. */
int link_say(struct link *link, uint32_t channel, int kind, int stream, const void *data, size_t size)
{
    if (link_room(link) < FRAME_HEADER + size)
        return 0;
    memcpy(link->out + link->out_end + FRAME_HEADER, data, size);
    header_put(link, channel, kind, stream, size);
    return 1;
}

/* Where the payload of a DATA frame goes, before link_data says how much there is. */
uint8_t *link_payload(struct link *link)
{
    return link->out + link->out_end + FRAME_HEADER;
}

void link_data(struct link *link, uint32_t channel, int stream, size_t size)
{
    header_put(link, channel, DATA, stream, size);
}

void link_write(struct link *link)
{
    while (link->out_start < link->out_end) {
        long size = SYS(write, link->fd, link->out + link->out_start, link->out_end - link->out_start);
        if (size == -EINTR)
            continue;
        if (size < 0) {
            link->broken |= size != -EAGAIN;
            break;
        }
        link->out_start += (size_t)size;
    }
    if (link->out_start == link->out_end) {
        link->out_start = link->out_end = 0;
    } else if (link->out_start > OUT_SIZE / 2) {
        memmove(link->out, link->out + link->out_start, link->out_end - link->out_start);
        link->out_end -= link->out_start;
        link->out_start = 0;
    }
}

/* -- in ------------------------------------------------------------------------------------------------------------------------ */

static void done(struct link *link, uint32_t channel, int error)
{
    uint8_t word[4];

    put32(word, (uint32_t)-error);
    link->broken |= !link_say(link, channel, DONE, 0, word, 4); /* who asks and does not listen has himself to blame */
}

static void frame(struct link *link, uint32_t channel, int kind, int stream, const uint8_t *data, size_t size)
{
    if (!link->greeted) {
        link->greeted = kind == HELLO && size >= 10 && !memcmp(data, WIRE_MAGIC, 8) && get16(data + 8) == WIRE_VERSION;
        link->broken |= !link->greeted;
        return;
    }
    switch (kind) {
    case START:
        channels_start(link, channel, data, size);
        break;
    case CONNECT:
        channels_connect(link, channel, data, size);
        break;
    case LISTEN:
        channels_listen(link, channel, data, size);
        break;
    case CLOCK:
        done(link, channel, set_clock(data, size));
        break;
    case ENTROPY:
        done(link, channel, add_entropy(data, size));
        break;
    case PING:
        done(link, channel, 0);
        break;
    case POWER:
        done(link, channel, 0);
        link_write(link);
        power(size >= 4 ? get32(data) : 0);
        break;
    default: { /* of a channel; what crossed its end means nothing */
        struct channel *found = channel_find(link, channel);
        if (found)
            channel_frame(found, kind, stream, data, size);
    }
    }
}

void link_read(struct link *link)
{
    size_t at = 0;
    long size = SYS(read, link->fd, link->in + link->in_size, FRAME_HEADER + FRAME_MAX - link->in_size);

    if (size == -EAGAIN || size == -EINTR)
        return;
    if (size <= 0) {
        link->broken = 1;
        return;
    }
    link->in_size += (size_t)size;
    while (!link->broken && link->in_size - at >= FRAME_HEADER) {
        const uint8_t *header = link->in + at;
        uint32_t length = get32(header);
        if (length > FRAME_MAX) {
            link->broken = 1;
            return;
        }
        if (link->in_size - at - FRAME_HEADER < length)
            break;
        frame(link, get32(header + 4), header[8], header[9], header + FRAME_HEADER, length);
        at += FRAME_HEADER + length;
    }
    link->in_size -= at;
    memmove(link->in, link->in + at, link->in_size);
}
