/* The input of a channel: what the host sends to a process or into a connection. What that does not take waits in a ring. */
#include "agent.h"

void channel_close_in(struct channel *channel)
{
    static const char end = 4; /* ^D, which ends the input where the terminal is not raw */
    int fd = channel->in;

    if (fd < 0)
        return;
    if (channel->terminal) {
        if (SYS(write, fd, &end, 1) == -EAGAIN) /* it is full, and is asked again when it is not */
            return;
    } else if (channel->both >= 0)
        SYS(shutdown, fd, SHUT_WR_);
    channel->in = -1;
    channel->ring_size = 0;
    channel_release(channel, fd);
}

void channel_lose_in(struct channel *channel)
{
    int fd = channel->in;

    channel->in = -1;
    channel->ring_size = 0;
    channel->say |= SAY_INPUT_CLOSED;
    channel_release(channel, fd);
}

/* As much of it as is taken now. */
static size_t put_in(struct channel *channel, const uint8_t *data, size_t size)
{
    long result = channel->connecting || !size ? 0 : SYS(write, channel->in, data, size);

    if (result == -EAGAIN || result == -EINTR)
        return 0;
    if (result < 0) {
        channel_lose_in(channel);
        return size;
    }
    channel->owed += (uint32_t)result;
    return (size_t)result;
}

void channel_input(struct channel *channel, const uint8_t *data, size_t size)
{
    size_t end;

    if (channel->in < 0) /* the host is told of that, or has said it */
        return;
    if (size > STDIN_WINDOW - channel->ring_size) {
        channel->link->broken = 1;
        return;
    }
    if (!channel->ring_size) {
        size_t taken = put_in(channel, data, size);
        data += taken;
        size -= taken;
        if (!size)
            return;
    }
    end = (channel->ring_start + channel->ring_size) % STDIN_WINDOW;
    channel->ring_size += (uint32_t)size;
    if (size > STDIN_WINDOW - end) {
        memcpy(channel->ring + end, data, STDIN_WINDOW - end);
        data += STDIN_WINDOW - end;
        size -= STDIN_WINDOW - end;
        end = 0;
    }
    memcpy(channel->ring + end, data, size);
}

static void flush_in(struct channel *channel)
{
    while (channel->ring_size) {
        size_t size = STDIN_WINDOW - channel->ring_start, taken;
        if (size > channel->ring_size)
            size = channel->ring_size;
        taken = put_in(channel, channel->ring + channel->ring_start, size);
        if (!taken)
            return;
        channel->ring_start = (channel->ring_start + (uint32_t)taken) % STDIN_WINDOW;
        channel->ring_size -= channel->ring_size < taken ? channel->ring_size : (uint32_t)taken; /* lost: 0 */
    }
    if (channel->in_ends)
        channel_close_in(channel);
}

void channel_input_ready(struct channel *channel, int events)
{
    if (!events || channel->in < 0)
        return;
    if (channel->connecting) {
        channel_connected(channel);
        if (channel->connecting) /* elsewhere now */
            return;
    }
    if (events & (POLLERR | POLLHUP) && channel->in >= 0 && !channel->terminal)
        channel_lose_in(channel);
    if (channel->in >= 0)
        flush_in(channel);
}
