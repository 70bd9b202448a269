/* The protocol between the agent and its host, version 1: docs/agent.md, and aiovmm/agent/wire.py, which has the same numbers.
 *
 * A frame is 12 bytes and a payload: u32 size of the payload, u32 channel, u8 kind, u8 stream, u16 zero; little endian.
 */
#ifndef AGENT_WIRE_H
#define AGENT_WIRE_H

#define AGENT_PORT 2576
#define WIRE_MAGIC "aiovmmAG"

enum {
    WIRE_VERSION = 1,
    FRAME_HEADER = 12,
    FRAME_MAX = 256 << 10,   /* bytes of a payload from the host */
    DATA_MAX = 64 << 10,     /* of a DATA frame to it */
    STDIN_WINDOW = 1 << 20, /* bytes of a stream that the host may send before it hears of credit */
    CHANNELS_MAX = 1024,
};

enum kind {
    HELLO = 1,
    START = 2,    /* host: a process (struct below) */
    CONNECT = 3,  /* host: a connection to a port or unix socket of the guest */
    LISTEN = 4,   /* host: listen at a port of the guest */
    ACCEPTED = 5, /* agent: u32, the channel of a connection that a listener took */
    STARTED = 6,  /* agent: u32, pid, or the port that is listened at */
    FAILED = 7,   /* agent: i32 errno, u32 stage; the channel's last */
    DATA = 8,
    EOF_ = 9,
    CREDIT = 10,  /* u32, bytes */
    EXIT = 11,    /* agent: i32, status, or the signal below zero */
    SIGNAL = 12,  /* host: u32 number, u32 whom */
    RESIZE = 13,  /* host: u16 rows, u16 columns */
    CLOSE = 14,   /* host: u32, whether to kill the session; nothing of the channel is wanted any more */
    CLOSED = 15,  /* agent: the channel's last */
    CLOCK = 16,   /* host: u64 seconds, u32 nanoseconds */
    ENTROPY = 17, /* host: bytes */
    POWER = 18,   /* host: u32: 0 off, 1 reboot, 2 halt */
    DONE = 19,    /* agent: i32 errno, to CLOCK, ENTROPY, POWER, PING */
    PING = 20,
};

enum { WHOM_PROCESS, WHOM_GROUP, WHOM_SESSION };
enum { STDIN, STDOUT, STDERR };
enum { MODE_NULL, MODE_PIPE, MODE_STDOUT };

/* START: u32 flags, u8 modes[3], u8 zero, u16 rows, u16 columns, u32 credit[2] of stdout and stderr, u16 argc, u16 envc,
 * u16 limits, u16 zero; limits (u32 resource, u64 soft, u64 hard); NUL-terminated: directory, user, argv, environment. */
enum { START_HEADER = 28, START_LIMIT = 20 };
enum {
    START_PTY = 1,
    START_ENDS = 2,   /* its streams end with it, whoever else has them open */
    START_APPLET = 4, /* argv[0] is the name of a part of the agent */
    START_STAYS = 8,  /* it is not hung up when the connection ends */
};

/* What failed, in FAILED. */
enum { STAGE_RESOURCES = 1, STAGE_USER, STAGE_DIRECTORY, STAGE_LIMITS, STAGE_TERMINAL, STAGE_PROGRAM, STAGE_NETWORK };

#endif
