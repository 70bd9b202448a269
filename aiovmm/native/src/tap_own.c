#include "tap_own.h"
#include <string.h>

enum { ETHERNET = 14, ARP = 28, IPV4 = 20, IPV6 = 40 };
enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86dd };

/* Headers of IPv6: RFC 8200 4, RFC 4302, RFC 6275. */
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, ICMP6 = 58, DESTINATION = 60, MOBILITY = 135 };
/* ICMPv6: RFC 4861 4. Between the first and the last are those of routers and neighbours. */
enum { ROUTER_SOLICITATION = 133, NEIGHBOUR_SOLICITATION = 135, NEIGHBOUR_ADVERTISEMENT = 136, REDIRECT = 137 };
enum { OPTION_SOURCE = 1, OPTION_TARGET = 2 };

static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static bool is_zero(const uint8_t *p, uint32_t n) {
    while (n--)
        if (*p++)
            return false;
    return true;
}

static bool has_prefix(const uint8_t *address, const struct avmm_net_prefix *p) {
    uint32_t whole = p->bits / 8, rest = p->bits % 8;
    return !memcmp(address, p->address, whole) && (!rest || !((address[whole] ^ p->address[whole]) >> (8 - rest)));
}

static bool is_listed(const struct avmm_net_own *own, const uint8_t address[16]) {
    for (uint32_t i = 0; i < own->n_prefixes; i++)
        if (has_prefix(address, &own->prefixes[i]))
            return true;
    return false;
}

static bool may_be_ipv4(const struct avmm_net_own *own, const uint8_t *address) {
    uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff};
    memcpy(mapped + 12, address, 4);
    return own->any_ip || is_zero(address, 4) || is_listed(own, mapped);
}

static bool may_be_ipv6(const struct avmm_net_own *own, const uint8_t *address) {
    bool link_local = address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
    bool mapped = is_zero(address, 10) && address[10] == 0xff && address[11] == 0xff; /* on no wire (RFC 4038) */
    return own->any_ip || link_local || is_zero(address, 16) || (!mapped && is_listed(own, address));
}

/* The host puts two bytes of a checksum there, at the earliest. */
static uint32_t checksum_at(const struct virtio_net_hdr_v1 *h) {
    return h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? (uint32_t)h->csum_start + h->csum_offset : UINT32_MAX;
}

/* RFC 826, of IPv4 on Ethernet. */
static bool is_own_arp(const struct avmm_net_own *own, const uint8_t *p, uint32_t n) {
    static const uint8_t kind[6] = {0, 1, 8, 0, 6, 4};
    return n >= ARP && !memcmp(p, kind, sizeof kind) && !memcmp(p + 8, own->mac, 6) && may_be_ipv4(own, p + 14);
}

/* RFC 4861 4.6.1: what a message says of its sender's link-layer address. */
static bool are_own_options(const struct avmm_net_own *own, const uint8_t *p, uint32_t n, uint8_t of_sender) {
    for (uint32_t length; n; p += length, n -= length) {
        length = n >= 2 ? 8u * p[1] : 0;
        if (!length || length > n)
            return false;
        if (p[0] == of_sender && memcmp(p + 2, own->mac, 6))
            return false;
    }
    return true;
}

/* A message of ICMPv6 whose `n` bytes are `whole` or not. */
static bool is_own_icmp(const struct avmm_net_own *own, const uint8_t *p, uint32_t n, bool whole) {
    if (!n)
        return false;
    if (p[0] < ROUTER_SOLICITATION || p[0] > REDIRECT)
        return true;
    if (!whole) /* RFC 6980: they are in one piece; and none is so long */
        return false;
    switch (p[0]) {
    case ROUTER_SOLICITATION:
        return n >= 8 && are_own_options(own, p + 8, n - 8, OPTION_SOURCE);
    case NEIGHBOUR_SOLICITATION:
        return n >= 24 && are_own_options(own, p + 24, n - 24, OPTION_SOURCE);
    case NEIGHBOUR_ADVERTISEMENT:
        return n >= 24 && may_be_ipv6(own, p + 8) && !is_zero(p + 8, 16) && are_own_options(own, p + 24, n - 24, OPTION_TARGET);
    default: /* those of routers */
        return false;
    }
}

/* Where the payload of an IPv6 packet begins. */
struct payload {
    uint32_t at;
    uint8_t kind;
    bool fragment; /* the first of several, or the only one */
    bool later;    /* not the first: what it is of is not said here */
};

/* Pass over the headers before it, all in the `n` bytes. False: they are not all there. */
static bool find_payload(const uint8_t *p, uint32_t n, struct payload *f) {
    *f = (struct payload){.at = IPV6, .kind = p[6]};
    for (;;) {
        uint32_t skip;
        if (f->kind != HOP_BY_HOP && f->kind != ROUTING && f->kind != FRAGMENT && f->kind != AUTHENTICATION &&
            f->kind != DESTINATION && f->kind != MOBILITY)
            return true;
        if (f->at + 8 > n)
            return false;
        if (f->kind == FRAGMENT) {
            f->fragment = true;
            f->later = (get16(p + f->at + 2) & 0xfff8) != 0;
            skip = 8;
        } else {
            skip = f->kind == AUTHENTICATION ? 4u * (p[f->at + 1] + 2u) : 8u * (p[f->at + 1] + 1u);
        }
        f->kind = p[f->at];
        f->at += skip;
        if (f->later)
            return true;
    }
}

/* `p`: a packet, of whose `size` bytes `n` are there; the host's checksum goes to `sum_at` of it. */
static bool is_own_ipv6(const struct avmm_net_own *own, const uint8_t *p, uint32_t n, uint32_t size, uint32_t sum_at) {
    struct payload f;
    if (n < IPV6 || p[0] >> 4 != 6 || !may_be_ipv6(own, p + 8))
        return false;
    uint32_t length = IPV6 + get16(p + 4);
    if (length == IPV6 || length > size) /* one that is yet to be cut into segments */
        length = size;
    uint32_t there = n < length ? n : length;
    if (!find_payload(p, there, &f) || sum_at < f.at)
        return false;
    if (f.later || f.kind != ICMP6)
        return true;
    return f.at < there && (sum_at == UINT32_MAX || sum_at == f.at + 2) &&
           is_own_icmp(own, p + f.at, there - f.at, !f.fragment && there == length);
}

static bool is_own_ipv4(const struct avmm_net_own *own, const uint8_t *p, uint32_t n, uint32_t sum_at) {
    uint32_t header = n >= IPV4 ? 4u * (p[0] & 15) : 0;
    return header >= IPV4 && header <= n && p[0] >> 4 == 4 && may_be_ipv4(own, p + 12) && sum_at >= header;
}

bool avmm_net_is_own(const struct avmm_net_own *own, const uint8_t *head, uint32_t n, uint32_t size,
                     const struct virtio_net_hdr_v1 *h) {
    uint32_t sum_at = checksum_at(h);
    if (n < ETHERNET || memcmp(head + 6, own->mac, 6) || sum_at < ETHERNET)
        return false;
    sum_at -= sum_at == UINT32_MAX ? 0 : ETHERNET;
    const uint8_t *packet = head + ETHERNET;
    n -= ETHERNET, size -= ETHERNET;
    switch (get16(head + 12)) {
    case TYPE_IPV4:
        return is_own_ipv4(own, packet, n, sum_at);
    case TYPE_IPV6:
        return is_own_ipv6(own, packet, n, size, sum_at);
    case TYPE_ARP:
        return sum_at == UINT32_MAX && is_own_arp(own, packet, n);
    default: /* tags, 802.3 (spanning trees), and what else is not a guest's */
        return false;
    }
}
