/* Network frames between a file descriptor (a TAP, a datagram or stream socket) and chains that were taken from a queue:
 * whole batches a call, without a copy between a TAP and guest memory. Knows rings only as `struct avmm_chain`; taking and
 * returning them is the caller's. All descriptors are non-blocking. The guest may change its buffers at any time. */
#ifndef AIOVMM_TAP_H
#define AIOVMM_TAP_H
#include "ring.h"
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
};

/* `packet` has AVMM_NET_PACKET + 1 bytes; `stream`, for that kind only, AVMM_NET_STREAM_BUFFER. */
struct avmm_net_rx {
    int32_t fd;
    uint8_t kind;
    uint8_t zero_ends; /* reading nothing means that the peer has closed (SOCK_STREAM, SOCK_SEQPACKET) */
    uint8_t mergeable; /* VIRTIO_NET_F_MRG_RXBUF */
    uint8_t discard;   /* the link is down: what arrives is lost */
    uint32_t pending;  /* bytes of the packet, header included, that waits in `packet` for chains; 0: none */
    int32_t error;
    uint8_t *packet;
    uint8_t *stream;
    uint32_t stream_at, stream_end; /* what was read ahead */
    uint64_t packets, bytes;
    uint64_t dropped; /* too large for the driver's buffers, or while the link was down */
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
    uint64_t errors;  /* frames or headers of the guest that are not legal */
};

/* Read packets into chains[0..n) until `budget` bytes have passed. The first `*used` chains were filled; heads and lens (both
 * of n elements) are ready to be published, all at once, since a packet may span chains. Returns enum avmm_net_status. */
int avmm_net_receive(struct avmm_net_rx *rx, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov,
                     uint32_t budget, uint16_t *heads, uint32_t *lens, uint32_t *used);

/* Write the frames of chains[0..n); likewise. */
int avmm_net_send(struct avmm_net_tx *tx, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov,
                  uint32_t budget, uint16_t *heads, uint32_t *lens, uint32_t *used);

/* Throw away up to `most` packets that wait on the descriptor; how many there were. Not for streams. */
uint32_t avmm_net_drain(struct avmm_net_rx *rx, uint32_t most);

#endif
