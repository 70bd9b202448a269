/* An access of the guest's to a port or to memory that is no RAM: which device's range it is in, whether it can be answered from the
 * shadow or posted, and else what the loop says. */
#include "vcpu_parts.h"

#include <string.h>

/* ---- the range table ---- */

/* Hazard pointer: the table we announce cannot be freed once we have seen it in force after announcing it. Both loads and the
 * store are sequentially consistent and pair with the exchange in avmm_vm_publish and the loads in avmm_table_used. */
static struct avmm_table *hold_table(struct avmm_vcpu *v) {
    for (;;) {
        struct avmm_table *table = atomic_load(&v->vm->table);
        atomic_store(&v->hazard, table);
        if (table == atomic_load(&v->vm->table))
            return table;
    }
}

static void drop_table(struct avmm_vcpu *v) { atomic_store_explicit(&v->hazard, NULL, memory_order_release); }

static const struct avmm_range *find(const struct avmm_table *table, int space, uint64_t address, uint32_t size) {
    if (!table)
        return NULL;
    const struct avmm_range *ranges = table->ranges[space];
    uint32_t lo = 0, hi = table->count[space];
    while (lo < hi) { /* the first range that begins after `address` */
        uint32_t mid = lo + (hi - lo) / 2;
        if (ranges[mid].base <= address)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == 0)
        return NULL;
    const struct avmm_range *r = &ranges[lo - 1];
    uint64_t offset = address - r->base;
    return offset < r->size && size <= r->size - offset ? r : NULL;
}

/* ---- the verdict ---- */

enum verdict { MISS, SYNC, POST, POST_LAZILY, DONE };

/* What the policy bytes of an access have in common (`all`), and what any of them asks for (`any`). */
static void policy_of(const struct avmm_range *r, uint64_t offset, uint32_t size, uint8_t *all, uint8_t *any) {
    *all = r->policy ? 0xff : 0;
    *any = 0;
    for (uint32_t i = 0; r->policy && i < size; i++) {
        uint8_t p = __atomic_load_n(&r->policy[offset + i], __ATOMIC_ACQUIRE);
        *all &= p;
        *any |= p;
    }
}

static void count(struct avmm_vcpu *v, const struct avmm_range *r, int what) {
    __atomic_fetch_add(&r->counts[what], 1, __ATOMIC_RELAXED);
    if (what == AVMM_COUNT_POSTED)
        avmm_bump(&v->counters.posted);
    else if (what == AVMM_COUNT_SHADOW)
        avmm_bump(&v->counters.shadow);
    else if (what == AVMM_COUNT_IGNORED)
        avmm_bump(&v->counters.ignored);
}

/* Shadow bytes are written by the loop's plain byte stores; each is read on its own, so a wide read may be of two moments. The
 * policy is asked again after them: a loop that takes a byte out of the shadow, for it shall show what only the loop can give, changes
 * the policy first, with avmm_fence between, and what it then stores there must not be taken by who asked before. */
static enum verdict judge_read(struct avmm_vcpu *v, const struct avmm_range *r, uint64_t offset, uint32_t size, uint8_t *p) {
    uint8_t all, any;
    policy_of(r, offset, size, &all, &any);
    if (!(all & AVMM_SHADOW_READ)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    for (uint32_t i = 0; i < size; i++)
        p[i] = __atomic_load_n(&r->shadow[offset + i], __ATOMIC_ACQUIRE);
    policy_of(r, offset, size, &all, &any);
    if (!(all & AVMM_SHADOW_READ)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    count(v, r, AVMM_COUNT_SHADOW);
    return any & AVMM_NOTE_READ ? POST : DONE;
}

static bool shows(const struct avmm_range *r, uint64_t offset, uint32_t size, const uint8_t *p) {
    for (uint32_t i = 0; i < size; i++)
        if (__atomic_load_n(&r->shadow[offset + i], __ATOMIC_ACQUIRE) != p[i])
            return false;
    return true;
}

static enum verdict judge_write(struct avmm_vcpu *v, const struct avmm_range *r, uint64_t offset, uint32_t size,
                                const uint8_t *p) {
    uint8_t all, any;
    policy_of(r, offset, size, &all, &any);
    if (all & AVMM_IGNORE_WRITE || (all & AVMM_DROP_SAME && shows(r, offset, size, p))) {
        count(v, r, AVMM_COUNT_IGNORED);
        return DONE;
    }
    uint8_t first = r->policy ? __atomic_load_n(&r->policy[offset], __ATOMIC_ACQUIRE) : 0;
    if (size == 4 && first & AVMM_POSTED_DWORD)
        all = first | AVMM_POSTED_WRITE;
    if (!(all & AVMM_POSTED_WRITE)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    for (uint32_t i = 0; i < size; i++)
        if (__atomic_load_n(&r->policy[offset + i], __ATOMIC_RELAXED) & AVMM_LATCH_WRITE)
            __atomic_store_n(&r->shadow[offset + i], p[i], __ATOMIC_RELEASE);
    if (all & AVMM_IGNORE_WRITE) { /* of a dword that is to be latched alone */
        count(v, r, AVMM_COUNT_IGNORED);
        return DONE;
    }
    count(v, r, AVMM_COUNT_POSTED);
    return all & AVMM_LAZY_WRITE ? POST_LAZILY : POST;
}

/* ---- configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2) ---- */

#define CONFIG_DATA 4 /* behind the address register */
#define CONFIG_ENABLE 0x80000000u
#define CONFIG_ELSEWHERE 0x00ff0700u /* of another bus than 0, or another function */

/* An access to the data is one to the ECAM, which has a page for each function there is, unless the loop is to see it. Guests take a
 * lock around both accesses, so the address is the one that this vCPU has written. */
static enum verdict judge_config(struct avmm_vcpu *v, const struct avmm_table *table, const struct avmm_range *r, uint64_t offset,
                                 uint32_t size, bool is_write, uint8_t *p) {
    uint32_t at = 0;
    for (int i = 0; i < CONFIG_DATA; i++)
        at |= (uint32_t)__atomic_load_n(&r->shadow[i], __ATOMIC_ACQUIRE) << 8 * i;
    const struct avmm_range *page = NULL;
    uint64_t address = r->ecam + ((uint64_t)(at >> 11 & 31) << 15) + (at & 0xfc) + offset - CONFIG_DATA;
    if (at & CONFIG_ENABLE && !(at & CONFIG_ELSEWHERE))
        page = find(table, 1, address, size);
    if (!page)
        return MISS;
    offset = address - page->base;
    enum verdict verdict = is_write ? judge_write(v, page, offset, size, p) : judge_read(v, page, offset, size, p);
    return verdict == DONE ? DONE : SYNC;
}

/* ---- the access ---- */

bool avmm_guest_access(struct avmm_vcpu *v, int space, bool is_write, uint64_t address, uint32_t size, uint8_t *p) {
    enum verdict verdict = MISS;
    const struct avmm_table *table = hold_table(v);
    const struct avmm_range *r = find(table, space, address, size);
    if (r && r->ecam && address - r->base >= CONFIG_DATA)
        verdict = judge_config(v, table, r, address - r->base, size, is_write, p);
    else if (r)
        verdict = is_write ? judge_write(v, r, address - r->base, size, p) : judge_read(v, r, address - r->base, size, p);
    drop_table(v); /* before anything that may wait */

    struct avmm_entry e = {.address = address, .kind = (uint8_t)(2 * space + is_write), .size = (uint8_t)size};
    e.lazy = verdict == POST_LAZILY;
    if (is_write || verdict == POST)
        memcpy(&e.data, p, size);
    switch (verdict) {
    case MISS:
        avmm_bump(&v->counters.missed);
        if (!is_write)
            memset(p, 0xff, size);
        return true;
    case DONE:
        return true;
    case POST:
    case POST_LAZILY:
        return avmm_vcpu_put(v, &e);
    case SYNC:
        break;
    }
    uint64_t answer;
    if (!avmm_ask(v, &e, &answer))
        return false;
    if (!is_write)
        memcpy(p, &answer, size);
    return true;
}
