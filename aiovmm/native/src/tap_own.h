/* Whether a frame of a guest comes from who it may be: its card's MAC address, and its IP addresses where these are known. */
#ifndef AIOVMM_TAP_OWN_H
#define AIOVMM_TAP_OWN_H
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdint.h>

/* All that is looked at of a frame: whoever sends it sends this copy, since the guest goes on writing to its memory. */
#define AVMM_NET_HEAD 512u
#define AVMM_NET_OWN_MAX 64u

struct avmm_net_prefix {
    uint8_t address[16]; /* of IPv4 in the last four bytes, after ::ffff:0:0 */
    uint32_t bits;
};

struct avmm_net_own {
    uint8_t mac[6];
    uint8_t any_ip; /* only the MAC address is known */
    uint8_t pad;
    uint32_t n_prefixes;
    struct avmm_net_prefix prefixes[AVMM_NET_OWN_MAX];
};

/* `head`: the first `n` bytes of a frame of `size`, all of it or AVMM_NET_HEAD; `h`: what the host is to complete of it.
 *
 * IPv4, IPv6 and ARP pass, untagged, from the card's address. With IP addresses: from one of these; and from the unspecified one,
 * for who has none yet (DHCP, duplicate address detection), or a link-local IPv6 one. What ARP and neighbour discovery say of the
 * sender has to be as true; routers are not played. Nothing that is looked at is a place where the host is to put a checksum. */
bool avmm_net_is_own(const struct avmm_net_own *own, const uint8_t *head, uint32_t n, uint32_t size,
                     const struct virtio_net_hdr_v1 *h);

#endif
