/* The agent's parts and what they share.
 *
 * One thread and one poll: main.c waits, link.c has the connections to the host, channel.c what goes on in each channel, whose two
 * directions are channel_in.c and channel_out.c. Nothing is queued: what a channel has to say is a set of flags, which is said as
 * there is room, so that memory is bounded by the number of channels. Whatever may block, files among it, is done by a child of its
 * own (spawn.c, applets.c).
 */
#ifndef AGENT_H
#define AGENT_H

#include "sys.h"
#include "text.h"
#include "wire.h"

enum { OUT_SIZE = 320 << 10, LINKS_MAX = 64, CONTROL_ROOM = 64 };

struct link {
    int fd;
    int greeted;
    uint8_t *in; /* FRAME_HEADER + FRAME_MAX bytes */
    size_t in_size;
    uint8_t *out; /* OUT_SIZE bytes: [out_start, out_end) are to be sent */
    size_t out_start, out_end;
    uint32_t next_accepted;
    int broken;
    int pollfd;
};

enum what { PROCESS, STREAM, LISTENER };
/* What a channel has yet to say. */
enum {
    SAY_STARTED = 1,
    SAY_FAILED = 2,
    SAY_EOF = 4, /* of stdout; of stderr twice that */
    SAY_EXIT = 16,
    SAY_INPUT_CLOSED = 32,
};

struct channel {
    struct link *link;
    uint32_t id;
    enum what what;
    uint32_t say;
    int closing;          /* the host wants nothing more of it */
    int32_t number, stage; /* of STARTED or FAILED */

    int in, out[2];       /* -1 where there is none (any more) */
    uint32_t accepted;    /* of a listener: the credit that its connections begin with */
    int both;             /* of a terminal and a socket: what in and out[0] are one of, open as long as either is */
    int terminal;
    int ready[2];         /* there may be something to read */
    uint32_t credit[2];   /* bytes that the host takes of each */
    uint32_t drain[2];    /* of a process that has ended and whose streams end with it: bytes that are still its own */
    int draining;
    int connecting;
    uint32_t port;        /* of a connection that goes to 127.0.0.1, and is tried at ::1 if nobody listens there */

    uint8_t *ring; /* STDIN_WINDOW bytes of input that `in` has not taken */
    uint32_t ring_start, ring_size, owed;
    int in_ends;

    int pid, pidfd, startfd;
    int running, ends, stays;
    int32_t status;
    int poll_in, poll_out[2], poll_pid, poll_start;
};

enum { ENVC_MAX = 4088 }; /* variables of a request */

struct request {
    uint32_t flags, credit[2];
    uint8_t modes[3];
    uint16_t rows, columns, argc, envc, limits;
    const uint8_t *limit;
    const char *directory, *user;
    char *const *argv;
    char *const *env;
};

/* request.c */
/* 0 or an errno below it. `pointers` has room for `most`: argv and env point into it, and their texts into `data`. */
int request_parse(struct request *request, const uint8_t *data, size_t size, char **pointers, size_t most);

/* spawn.c */
extern struct limit own_files; /* RLIMIT_NOFILE as the agent found it, which its children get */
int spawn(struct channel *channel, const struct request *request);

/* session.c */
void kill_session(int session, int number);

/* user.c */
struct user {
    uint32_t uid, gid, groups[64];
    int group_count;
    char name[64], home[256], shell[256];
};
int user_find(const char *wanted, struct user *user);

/* applets.c, pack.c and unpack.c: run in a child, as processes do */
int applet_run(char *const *argv);
int pack(const char *path);
int unpack(const char *path);
int64_t read_whole(int fd, void *to, size_t size);
int write_whole(int fd, const void *from, size_t size);

/* channel.c */
struct channel *channel_new(struct link *link, uint32_t id, enum what what);
struct channel *channel_find(struct link *link, uint32_t id);
void channels_start(struct link *link, uint32_t id, const uint8_t *data, size_t size);
void channel_frame(struct channel *channel, int kind, int stream, const uint8_t *data, size_t size);
void channels_drop(struct link *link);
int channels_emit(struct link *link);
int channels_poll(struct pollfd *fds, int count);
void channels_ready(const struct pollfd *fds);
/* A direction of it is over: the descriptor goes with the second one, a terminal not before its process, which may be about to end
 * and would be hung up. */
void channel_release(struct channel *channel, int fd);

/* channel_in.c */
void channel_input(struct channel *channel, const uint8_t *data, size_t size);
void channel_input_ready(struct channel *channel, int events);
void channel_close_in(struct channel *channel);
void channel_lose_in(struct channel *channel); /* nobody reads it */

/* channel_out.c */
/* One frame of a stream, read to where it is sent from. Whether there may be more. */
int channel_emit_data(struct link *link, struct channel *channel, int i);
/* What there is to say but data, in the order in which it has to be said; 0 if there is no room. */
int channel_emit_control(struct link *link, struct channel *channel);

/* net.c */
void channels_connect(struct link *link, uint32_t id, const uint8_t *data, size_t size);
void channels_listen(struct link *link, uint32_t id, const uint8_t *data, size_t size);
void channel_connected(struct channel *channel);
void listener_ready(struct channel *listener);

/* link.c */
extern struct link links[LINKS_MAX];
void link_open(int fd);
void link_close(struct link *link);
void link_read(struct link *link);
void link_write(struct link *link);
size_t link_room(const struct link *link);
int link_say(struct link *link, uint32_t channel, int kind, int stream, const void *data, size_t size);
uint8_t *link_payload(struct link *link);
void link_data(struct link *link, uint32_t channel, int stream, size_t size);

/* system.c */
extern int is_init;
void init_begin(void);
int set_clock(const uint8_t *data, size_t size);
int add_entropy(const uint8_t *data, size_t size);
void power(uint32_t what);
void note(const char *text);

#endif
