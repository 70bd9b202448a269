/* Connections of the guest's own network and unix sockets, for the host; and what the guest's programs connect to, to the host. */
#include "agent.h"

struct inet_address {
    uint16_t family, port; /* big endian */
    uint8_t rest[24];
};

struct unix_address {
    uint16_t family;
    char path[108];
};

union address {
    struct inet_address inet;
    struct unix_address local;
};

enum { CONNECT_LOCAL = 0, CONNECT_UNIX = 1, BACKLOG = 128 };

/* Returns the address's size. */
static size_t loopback(union address *address, uint32_t port, int v6)
{
    memset(address, 0, sizeof *address);
    address->inet.family = v6 ? AF_INET6_ : AF_INET_;
    address->inet.port = (uint16_t)(port << 8 | port >> 8);
    if (v6)
        address->inet.rest[4 + 15] = 1; /* ::1, behind the flow label */
    else
        memcpy(address->inet.rest, "\x7f\0\0\1", 4);
    return v6 ? 28 : 16;
}

/* u8 kind, u8 zero, u16 port, u32 credit, and the path of a unix socket. Returns the address's size, 0 if it is none. */
static size_t address_of(union address *address, const uint8_t *data, size_t size)
{
    if (size < 8)
        return 0;
    if (data[0] == CONNECT_UNIX) {
        size_t length = size - 8;
        memset(address, 0, sizeof *address);
        if (!length || length >= sizeof address->local.path)
            return 0;
        address->local.family = AF_UNIX_;
        memcpy(address->local.path, data + 8, length);
        return 2 + length + 1;
    }
    return loopback(address, get16(data + 2), 0);
}

static void say_failed(struct channel *channel, int error)
{
    channel->number = error;
    channel->stage = STAGE_NETWORK;
    channel->say |= SAY_FAILED;
}

static int open_socket(const union address *address, size_t size)
{
    int fd = (int)SYS(socket, address->inet.family, SOCK_STREAM_ | O_NONBLOCK | O_CLOEXEC, 0);
    long result = fd < 0 ? fd : SYS(connect, fd, address, size);

    if (result < 0 && result != -EINPROGRESS) {
        sys_close(fd);
        return (int)result;
    }
    return fd;
}

/* To ::1, once, where nobody listens at 127.0.0.1: who has an IPv6 address for "localhost" may listen there alone. Mostly it is
 * heard of the first one's end when it has been waited for. A socket, or `error`. */
static int connect_v6(struct channel *channel, int error)
{
    union address address;
    uint32_t port = channel->port;
    int fd;

    channel->port = 0;
    if (error != -ECONNREFUSED || !port)
        return error;
    fd = open_socket(&address, loopback(&address, port, 1));
    return fd < 0 ? error : fd;
}

void channels_connect(struct link *link, uint32_t id, const uint8_t *data, size_t size)
{
    struct channel *channel = channel_new(link, id, STREAM);
    union address address;
    size_t length;
    int fd = -EINVAL;

    if (!channel)
        return;
    length = address_of(&address, data, size);
    if (length) {
        channel->port = data[0] == CONNECT_LOCAL ? get16(data + 2) : 0;
        fd = open_socket(&address, length);
    }
    if (fd < 0)
        fd = connect_v6(channel, fd);
    if (fd < 0) {
        say_failed(channel, -fd);
        return;
    }
    channel->in = channel->out[0] = channel->both = fd;
    channel->credit[0] = get32(data + 4);
    channel->connecting = 1;
}

void channel_connected(struct channel *channel)
{
    int error = 0, fd;
    uint32_t size = sizeof error;

    SYS(getsockopt, channel->both, SOL_SOCKET_, SO_ERROR_, &error, &size);
    channel->connecting = 0;
    if (!error) {
        channel->say |= SAY_STARTED;
        return;
    }
    sys_close(channel->both);
    fd = connect_v6(channel, -error);
    channel->connecting = fd >= 0;
    channel->in = channel->out[0] = channel->both = fd < 0 ? -1 : fd;
    if (fd < 0)
        say_failed(channel, -fd);
}

/* At a port of 127.0.0.1, or at a unix socket. `number` becomes the port. */
void channels_listen(struct link *link, uint32_t id, const uint8_t *data, size_t size)
{
    struct channel *channel = channel_new(link, id, LISTENER);
    union address address;
    uint32_t length;
    int fd, on = 1;
    long result;

    if (!channel)
        return;
    length = (uint32_t)address_of(&address, data, size);
    if (!length) {
        say_failed(channel, EINVAL);
        return;
    }
    fd = (int)SYS(socket, address.inet.family, SOCK_STREAM_ | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd >= 0)
        SYS(setsockopt, fd, SOL_SOCKET_, SO_REUSEADDR_, &on, sizeof on);
    result = fd < 0 ? fd : SYS(bind, fd, &address, length);
    if (result >= 0)
        result = SYS(listen, fd, BACKLOG);
    if (result < 0) {
        sys_close(fd);
        say_failed(channel, (int)-result);
        return;
    }
    length = sizeof address;
    SYS(getsockname, fd, &address, &length);
    channel->number = data[0] == CONNECT_UNIX ? 0 : address.inet.port >> 8 | (address.inet.port & 0xff) << 8;
    channel->accepted = get32(data + 4);
    channel->out[0] = fd;
    channel->say = SAY_STARTED;
}

/* One connection: a channel of the agent's making, whose number has the highest bit set. */
void listener_ready(struct channel *listener)
{
    struct link *link = listener->link;
    int fd = (int)SYS(accept4, listener->out[0], 0, 0, O_NONBLOCK | O_CLOEXEC);
    struct channel *channel;
    uint8_t word[4];

    if (fd < 0)
        return;
    put32(word, 0x80000000u | link->next_accepted);
    if (link_room(link) < 4 * CONTROL_ROOM || !(channel = channel_new(link, get32(word), STREAM))) {
        sys_close(fd);
        return;
    }
    link->next_accepted++;
    channel->in = channel->out[0] = channel->both = fd;
    channel->credit[0] = listener->accepted;
    link_say(link, listener->id, ACCEPTED, 0, word, 4);
}
