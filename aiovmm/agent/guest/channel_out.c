/* What a channel says to the host: its streams, and what has become of it. */
#include "agent.h"

static void close_out(struct channel *channel, int i)
{
    int fd = channel->out[i];

    channel->out[i] = -1;
    channel_release(channel, fd);
}

static void end_of(struct channel *channel, int i)
{
    channel->say |= (uint32_t)SAY_EOF << i;
    if (channel->terminal && channel->in >= 0)
        channel_lose_in(channel);
    close_out(channel, i);
}

int channel_emit_data(struct link *link, struct channel *channel, int i)
{
    size_t room = link_room(link), most = DATA_MAX;
    long size;

    if (channel->out[i] < 0 || !channel->ready[i])
        return 0;
    if (channel->draining && !channel->drain[i]) {
        end_of(channel, i);
        return 0;
    }
    if (!channel->credit[i])
        return 0;
    if (room < 2 * CONTROL_ROOM + 4096)
        return 1;
    if (most > channel->credit[i])
        most = channel->credit[i];
    if (most > room - FRAME_HEADER - CONTROL_ROOM)
        most = room - FRAME_HEADER - CONTROL_ROOM;
    if (channel->draining && most > channel->drain[i])
        most = channel->drain[i];
    size = SYS(read, channel->out[i], link_payload(link), most);
    if (size > 0) {
        link_data(link, channel->id, STDOUT + i, (size_t)size);
        channel->credit[i] -= (uint32_t)size;
        if (channel->draining)
            channel->drain[i] -= (uint32_t)size;
        return channel->ready[i] = (size_t)size == most;
    }
    channel->ready[i] = 0;
    if (size == 0 || (size != -EAGAIN && size != -EINTR) || channel->draining)
        end_of(channel, i); /* of a terminal that is EIO: nobody has it open */
    return 0;
}

static int say_number(struct link *link, struct channel *channel, uint32_t flag, int kind, uint32_t a, uint32_t b, size_t size)
{
    uint8_t words[8];

    put32(words, a);
    put32(words + 4, b);
    if (!link_say(link, channel->id, kind, 0, words, size))
        return 0;
    channel->say &= ~flag;
    return 1;
}

int channel_emit_control(struct link *link, struct channel *channel)
{
    uint32_t number = (uint32_t)channel->number;

    if (channel->say & SAY_STARTED && !say_number(link, channel, SAY_STARTED, STARTED, number, 0, 4))
        return 0;
    if (channel->say & SAY_FAILED) {
        if (!say_number(link, channel, SAY_FAILED, FAILED, number, (uint32_t)channel->stage, 8))
            return 0;
        channel->closing = 1;
    }
    if (channel->owed >= STDIN_WINDOW / 4) { /* less than that keeps nobody waiting */
        if (!say_number(link, channel, 0, CREDIT, channel->owed, 0, 4))
            return 0;
        channel->owed = 0;
    }
    for (int i = 0; i < 2; i++) {
        uint32_t flag = (uint32_t)SAY_EOF << i;
        if (channel->say & flag) {
            if (!link_say(link, channel->id, EOF_, STDOUT + i, "", 0))
                return 0;
            channel->say &= ~flag;
        }
    }
    if (channel->say & SAY_INPUT_CLOSED) {
        if (!link_say(link, channel->id, EOF_, STDIN, "", 0))
            return 0;
        channel->say &= ~(uint32_t)SAY_INPUT_CLOSED;
    }
    return !(channel->say & SAY_EXIT) || channel->startfd >= 0 ||
           say_number(link, channel, SAY_EXIT, EXIT, (uint32_t)channel->status, 0, 4);
}
