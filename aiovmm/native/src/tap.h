/* Network frames between a file descriptor (a TAP, a datagram or stream socket) and the chains of a queue: a turn of the event
 * loop is one call, which takes chains, moves what there is and returns them, without a copy between a TAP and guest memory.
 * All descriptors are non-blocking. The guest may change its buffers at any time. */
#ifndef AIOVMM_TAP_H
#define AIOVMM_TAP_H
#include "allowance.h"
#include "ring.h"
#include "tap_own.h"
#include <stdint.h>
#include <sys/uio.h>

#define AVMM_NET_HDR 12u      /* struct virtio_net_hdr_v1, VIRTIO 1.2 §5.1.6 */
#define AVMM_NET_FRAME 65568u /* largest frame: 65535 bytes of IP (or of MTU), Ethernet header, two VLAN tags, rounded up */
#define AVMM_NET_PACKET (AVMM_NET_HDR + AVMM_NET_FRAME)
#define AVMM_NET_STREAM_BUFFER (2u * (4u + AVMM_NET_FRAME))

/* How frames travel on the descriptor. */
enum avmm_net_kind {
    AVMM_NET_VNET = 0,   /* one a read or write, after a struct virtio_net_hdr_v1: TAP with IFF_VNET_HDR, header size 12 */
    AVMM_NET_PLAIN = 1,  /* one a read or write, bare: TAP without it, datagram sockets */
    AVMM_NET_STREAM = 2, /* bare, each after its length in 4 bytes, big-endian: QEMU's `-netdev stream`, passt */
};

enum avmm_net_status {
    AVMM_NET_WAIT = 0,  /* the descriptor would block */
    AVMM_NET_MORE = 1,  /* this call's share of work is done, there may be more */
    AVMM_NET_ROOM = 2,  /* receiving only: no chains left, or too few for the packet that is pending */
    AVMM_NET_ENDED = 3, /* the other end is gone for good: `error` is the errno, 0 at the end of a stream */
    AVMM_NET_BAD = 4,   /* the chain after the `used` ones is not one that this queue can have */
    AVMM_NET_RING = 5,  /* the ring is malformed, and nothing was done: see the turn's `error` */
};

/* `packet` has AVMM_NET_PACKET + 1 bytes; `stream`, for that kind only, AVMM_NET_STREAM_BUFFER. */
struct avmm_net_rx {
    int32_t fd;
    uint8_t kind;
    uint8_t zero_ends; /* reading nothing means that the peer has closed (SOCK_STREAM, SOCK_SEQPACKET) */
    uint8_t mergeable; /* VIRTIO_NET_F_MRG_RXBUF */
    uint8_t discard;   /* the link is down: what arrives is lost */
    uint8_t checked;   /* the driver knows checksum offloads: its headers may say so */
    uint8_t socket;    /* fd is one */
    uint8_t pad[2];
    uint32_t pending;  /* bytes of the packet, header included, that waits in `packet` for chains; 0: none */
    uint32_t aim;      /* bytes that a packet is expected to have: grows at once, shrinks slowly */
    int32_t error;
    uint8_t *packet;
    uint8_t *stream;
    uint32_t stream_at, stream_end; /* what was read ahead */
    uint64_t packets, bytes;
    uint64_t dropped; /* too large for the driver's buffers, or while the link was down */
    struct avmm_allowance *allowance; /* what its rate limit lets through, or NULL */
};

struct avmm_net_tx {
    int32_t fd;
    uint8_t kind;
    uint8_t socket;
    uint8_t checksum;    /* VIRTIO_NET_F_CSUM: the host completes checksums */
    uint8_t discard;     /* the link is down */
    uint32_t gso;        /* bit n: gso_type n was negotiated */
    uint8_t ecn;         /* VIRTIO_NET_F_HOST_ECN */
    uint8_t pad[3];
    int32_t error;
    uint8_t *packet;     /* for chains of very many pieces, and for the rest of a frame that a stream took in part */
    uint32_t left_at, left_end;
    uint64_t packets, bytes;
    uint64_t dropped; /* the host had no room or no interface that is up, or the link was down */
    uint64_t errors;  /* frames or headers of the guest that are not legal, or not its own */
    struct avmm_allowance *allowance;
    const struct avmm_net_own *own; /* who the guest may be, or NULL: anyone */
};

/* What the turns of one queue work with: set up once, but for what they fill in. */
struct avmm_net_turn {
    struct avmm_queue *queue;
    const struct avmm_mem *mem;
    struct avmm_chain *chains; /* room for `max_chains`, with `max_iov` segments in all; no chain is taken if it is 0 */
    struct iovec *iov;
    uint32_t max_chains, max_iov;
    uint16_t *heads;           /* receiving only, max_chains each: those of one packet */
    uint32_t *lens;
    uint32_t budget;           /* a turn ends when so many bytes have passed */
    /* filled in */
    uint32_t n;                /* chains that were taken */
    uint32_t used;             /* the first of them, which have been returned; the others have been put back */
    int32_t interrupt;         /* 1: the driver wants one; -1: a chain that was not in flight */
    struct avmm_ring_error error;
};

/* Read packets into chains, which are taken a few at a time as packets keep coming, until `budget` bytes have passed or the driver
 * wants an interrupt. Those of a packet are returned as soon as it is there. Returns enum avmm_net_status. */
int avmm_net_receive_turn(struct avmm_net_rx *rx, struct avmm_net_turn *turn);

/* Write the frames of the chains that there are, and of those that the driver offers meanwhile; likewise. After a turn that sent
 * frames the driver may still be owed an interrupt: another turn is to follow, or a look whether it wants one. */
int avmm_net_send_turn(struct avmm_net_tx *tx, struct avmm_net_turn *turn);

/* Throw away up to `most` packets that wait on the descriptor; how many there were. Not for streams. */
uint32_t avmm_net_drain(struct avmm_net_rx *rx, uint32_t most);

#endif
