/* What goes on in each channel: a process with its streams, or a connection of the guest's. */
#include "agent.h"

static struct channel *channels[CHANNELS_MAX];
static int channel_count;
static char *pointers[8192]; /* of the arguments of the request that is being carried out */

struct channel *channel_new(struct link *link, uint32_t id, enum what what)
{
    struct channel *channel = NULL;

    if (channel_count < CHANNELS_MAX && !channel_find(link, id))
        channel = pages_new(sizeof *channel + STDIN_WINDOW);
    if (!channel) {
        uint8_t words[8];
        put32(words, channel_count < CHANNELS_MAX ? ENOMEM : EAGAIN);
        put32(words + 4, STAGE_RESOURCES);
        link->broken |= !link_say(link, id, FAILED, 0, words, 8);
        return NULL;
    }
    channel->link = link;
    channel->id = id;
    channel->what = what;
    channel->ring = (uint8_t *)(channel + 1);
    channel->in = channel->both = channel->out[0] = channel->out[1] = channel->pidfd = channel->startfd = -1;
    channel->poll_in = channel->poll_out[0] = channel->poll_out[1] = channel->poll_pid = channel->poll_start = -1;
    channels[channel_count++] = channel;
    return channel;
}

struct channel *channel_find(struct link *link, uint32_t id)
{
    for (int i = 0; i < channel_count; i++)
        if (channels[i]->id == id && channels[i]->link == link)
            return channels[i];
    return NULL;
}

void channels_start(struct link *link, uint32_t id, const uint8_t *data, size_t size)
{
    struct channel *channel = channel_new(link, id, PROCESS);
    struct request request;
    int error;

    if (!channel)
        return;
    error = request_parse(&request, data, size, pointers, sizeof pointers / sizeof *pointers);
    if (!error) {
        memcpy(channel->credit, request.credit, sizeof request.credit);
        channel->ends = !!(request.flags & START_ENDS);
        channel->stays = !!(request.flags & START_STAYS);
        error = spawn(channel, &request);
    }
    if (error) {
        channel->number = -error;
        channel->say = SAY_FAILED;
    }
}

/* A direction of it is over: the descriptor goes with the second one, a terminal not before its process, which may be about to end
 * and would be hung up. */
void channel_release(struct channel *channel, int fd)
{
    if (channel->both < 0 || fd != channel->both) {
        sys_close(fd);
    } else if (channel->in < 0 && channel->out[0] < 0 && !(channel->terminal && channel->running)) {
        sys_close(channel->both);
        channel->both = -1;
    }
}

/* -- the host's wishes --------------------------------------------------------------------------------------------------------- */

static void signal_to(struct channel *channel, uint32_t number, uint32_t whom)
{
    if (channel->pid <= 0 || number > 64)
        return;
    /* It is not reaped before the channel's end, so that the number is nobody else's. */
    if (whom == WHOM_SESSION)
        kill_session(channel->pid, (int)number);
    else
        SYS(kill, whom == WHOM_GROUP ? -channel->pid : channel->pid, number);
}

/* All descriptors; a process that runs on is told by its pipes, and its terminal hangs up. */
static void close_all(struct channel *channel)
{
    if (channel->both >= 0)
        channel->in = channel->out[0] = -1;
    sys_close(channel->both);
    sys_close(channel->in);
    sys_close(channel->out[0]);
    sys_close(channel->out[1]);
    sys_close(channel->startfd);
    channel->in = channel->both = channel->out[0] = channel->out[1] = channel->startfd = -1;
    channel->ring_size = 0;
}

static void close_channel(struct channel *channel, uint32_t kill)
{
    if (kill)
        signal_to(channel, SIGKILL, WHOM_SESSION);
    close_all(channel);
    channel->closing = 1;
    channel->say = 0;
}

void channel_frame(struct channel *channel, int kind, int stream, const uint8_t *data, size_t size)
{
    switch (kind) {
    case DATA:
        channel_input(channel, data, size);
        break;
    case EOF_:
        channel->in_ends = 1;
        if (!channel->ring_size && !channel->connecting)
            channel_close_in(channel);
        break;
    case CREDIT:
        if (size >= 4 && (stream == STDOUT || stream == STDERR))
            channel->credit[stream - 1] += get32(data);
        break;
    case SIGNAL:
        if (size >= 8)
            signal_to(channel, get32(data), get32(data + 4));
        break;
    case RESIZE:
        if (size >= 4 && channel->terminal) {
            uint16_t window[4] = {get16(data), get16(data + 2), 0, 0};
            SYS(ioctl, channel->both, TIOCSWINSZ, window);
        }
        break;
    case CLOSE:
        close_channel(channel, size >= 4 ? get32(data) : 0);
        break;
    default: /* a host that is newer than its greeting */
        channel->link->broken = 1;
    }
}

/* -- what happens to it -------------------------------------------------------------------------------------------------------- */

static void on_started(struct channel *channel)
{
    int32_t words[2];
    long size = SYS(read, channel->startfd, words, sizeof words);

    sys_close(channel->startfd);
    channel->startfd = -1;
    if (size == sizeof words) {
        channel->number = words[0];
        channel->stage = words[1];
        channel->say |= SAY_FAILED;
        close_all(channel);
    } else {
        channel->number = channel->pid;
        channel->say |= SAY_STARTED;
    }
}

static void on_exit(struct channel *channel)
{
    struct child_info info = {0};

    if (SYS(waitid, P_PID_, channel->pid, &info, WEXITED_ | WNOHANG_ | WNOWAIT_, 0) < 0 || !info.pid)
        return;
    channel->running = 0;
    channel->status = info.code == 1 /* CLD_EXITED */ ? info.status : -info.status;
    if (!(channel->say & SAY_FAILED))
        channel->say |= SAY_EXIT;
    if (channel->ends && !channel->terminal) {
        channel->draining = 1;
        for (int i = 0; i < 2; i++)
            if (channel->out[i] >= 0) {
                int size = 0;
                SYS(ioctl, channel->out[i], FIONREAD, &size);
                channel->drain[i] = (uint32_t)size;
                channel->ready[i] = 1;
            }
    }
}

static void free_channel(int index)
{
    struct channel *channel = channels[index];

    close_all(channel);
    sys_close(channel->pidfd);
    if (channel->pid > 0)
        SYS(wait4, channel->pid, 0, WNOHANG_, 0);
    channels[index] = channels[--channel_count];
    pages_free(channel, sizeof *channel + STDIN_WINDOW);
}

/* The connection is gone: its processes are hung up, like those of a terminal. One that heeds it not becomes nobody's: it stays as a
 * channel without a link until it has ended. */
void channels_drop(struct link *link)
{
    for (int i = channel_count - 1; i >= 0; i--) {
        struct channel *channel = channels[i];
        if (channel->link != link)
            continue;
        if (channel->running && !channel->stays && !channel->closing)
            kill_session(channel->pid, SIGHUP);
        close_channel(channel, 0);
        channel->link = NULL;
        if (!channel->running)
            free_channel(i);
    }
}

/* -- what it says -------------------------------------------------------------------------------------------------------------- */

static int is_over(const struct channel *channel)
{
    if (channel->running || channel->startfd >= 0 || channel->say)
        return 0;
    return channel->closing || (channel->what != LISTENER && channel->out[0] < 0 && channel->out[1] < 0 &&
                                (channel->what == PROCESS || channel->in < 0));
}

/* Whether there may be more to say, now or when there is room: nothing else tells of what is ready and was not read. Each channel
 * has its turn, and the first one is not always the same. */
int channels_emit(struct link *link)
{
    static unsigned first;
    int more = 0;

    first++;
    for (int n = channel_count - 1; n >= 0; n--) {
        int index = (int)((n + first) % (unsigned)channel_count);
        struct channel *channel = channels[index];
        if (channel->link != link)
            continue;
        if (!channel_emit_control(link, channel))
            return 1;
        for (int i = 0; i < 2; i++)
            more |= channel_emit_data(link, channel, i);
    }
    for (int index = channel_count - 1; index >= 0; index--) {
        struct channel *channel = channels[index];
        if (channel->link != link)
            continue;
        if (!channel_emit_control(link, channel))
            return 1;
        if (!is_over(channel))
            continue;
        if (!link_say(link, channel->id, CLOSED, 0, "", 0))
            return 1;
        free_channel(index);
    }
    return more;
}

/* -- waiting ------------------------------------------------------------------------------------------------------------------- */

static int add(struct pollfd *fds, int *count, int fd, int events)
{
    fds[*count].fd = fd;
    fds[*count].events = (short)events;
    fds[*count].revents = 0;
    return (*count)++;
}

/* Five entries a channel at most. */
int channels_poll(struct pollfd *fds, int count)
{
    for (int n = 0; n < channel_count; n++) {
        struct channel *channel = channels[n];
        int full = !channel->link || link_room(channel->link) < 2 * CONTROL_ROOM + 4096;
        channel->poll_in = channel->poll_pid = channel->poll_start = channel->poll_out[0] = channel->poll_out[1] = -1;
        int waits = channel->ring_size || channel->connecting || channel->in_ends;
        /* Without an event to wait for, its end is told; but that of a terminal is told when its output has been read. */
        if (channel->in >= 0 && (waits || !channel->terminal))
            channel->poll_in = add(fds, &count, channel->in, waits ? POLLOUT : 0);
        for (int i = 0; i < 2; i++)
            if (channel->out[i] >= 0 && !full && !channel->connecting && !channel->ready[i] && (channel->credit[i] || channel->what == LISTENER))
                channel->poll_out[i] = add(fds, &count, channel->out[i], POLLIN);
        if (channel->running)
            channel->poll_pid = add(fds, &count, channel->pidfd, POLLIN);
        if (channel->startfd >= 0)
            channel->poll_start = add(fds, &count, channel->startfd, POLLIN);
    }
    return count;
}

void channels_ready(const struct pollfd *fds)
{
    for (int n = channel_count - 1; n >= 0; n--) {
        struct channel *channel = channels[n];
        if (channel->poll_start >= 0 && fds[channel->poll_start].revents)
            on_started(channel);
        channel_input_ready(channel, channel->poll_in < 0 ? 0 : fds[channel->poll_in].revents);
        for (int i = 0; i < 2; i++)
            channel->ready[i] |= channel->poll_out[i] >= 0 && fds[channel->poll_out[i]].revents;
        if (channel->poll_pid >= 0 && fds[channel->poll_pid].revents)
            on_exit(channel);
        if (channel->what == LISTENER && channel->ready[0]) {
            channel->ready[0] = 0;
            listener_ready(channel);
        }
        if (!channel->link && !channel->running)
            free_channel(n);
    }
}
