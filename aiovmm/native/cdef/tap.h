#define AVMM_NET_HDR ...
#define AVMM_NET_FRAME ...
#define AVMM_NET_PACKET ...
#define AVMM_NET_STREAM_BUFFER ...
enum avmm_net_kind {
    AVMM_NET_VNET = 0,
    AVMM_NET_PLAIN = 1,
    AVMM_NET_STREAM = 2,
};
enum avmm_net_status {
    AVMM_NET_WAIT = 0,
    AVMM_NET_MORE = 1,
    AVMM_NET_ROOM = 2,
    AVMM_NET_ENDED = 3,
    AVMM_NET_BAD = 4,
    AVMM_NET_RING = 5,
};
struct avmm_net_rx {
    int32_t fd;
    uint8_t kind;
    uint8_t zero_ends;
    uint8_t mergeable;
    uint8_t discard;
    uint8_t checked;
    uint8_t socket;
    uint8_t pad[2];
    uint32_t pending;
    uint32_t aim;
    int32_t error;
    uint8_t *packet;
    uint8_t *stream;
    uint32_t stream_at, stream_end;
    uint64_t packets, bytes;
    uint64_t dropped;
    struct avmm_allowance *allowance;
};
#define AVMM_NET_OWN_MAX ...
struct avmm_net_prefix {
    uint8_t address[16];
    uint32_t bits;
};
struct avmm_net_own {
    uint8_t mac[6];
    uint8_t any_ip;
    uint8_t pad;
    uint32_t n_prefixes;
    struct avmm_net_prefix prefixes[64];
};
struct avmm_net_tx {
    int32_t fd;
    uint8_t kind;
    uint8_t socket;
    uint8_t checksum;
    uint8_t discard;
    uint32_t gso;
    uint8_t ecn;
    uint8_t pad[3];
    int32_t error;
    uint8_t *packet;
    uint32_t left_at, left_end;
    uint64_t packets, bytes;
    uint64_t dropped;
    uint64_t errors;
    struct avmm_allowance *allowance;
    const struct avmm_net_own *own;
};
struct avmm_net_turn {
    struct avmm_queue *queue;
    const struct avmm_mem *mem;
    struct avmm_chain *chains;
    struct iovec *iov;
    uint32_t max_chains, max_iov;
    uint16_t *heads;
    uint32_t *lens;
    uint32_t budget;
    uint32_t n;
    uint32_t used;
    int32_t interrupt;
    struct avmm_ring_error error;
};
int avmm_net_receive_turn(struct avmm_net_rx *rx, struct avmm_net_turn *turn);
int avmm_net_send_turn(struct avmm_net_tx *tx, struct avmm_net_turn *turn);
uint32_t avmm_net_drain(struct avmm_net_rx *rx, uint32_t most);
