/* The event loop's side of the exit ring: taking what the vCPU threads have put, and the table of ranges they look into.
 *
 * Entries are handed out oldest first, over all vCPUs: what one of them did before it passed a lock of the guest's on comes
 * before what the next one does. A stamp is given before its entry is in sight, so a drain reads how many there are (`limit`)
 * before it looks at any ring. Whatever was put before an entry with a stamp below that is then in sight too: by the time that
 * later stamp was given, it was. An entry below the limit that is not in sight yet is still being put, so nothing is ordered
 * after it. */
#include "vcpu_state.h"

#include <stdlib.h>
#include <string.h>

struct batch {
    struct avmm_event *out;
    uint32_t used, max;
    uint8_t *bytes;
    uint32_t nbytes, byte;
};

static const struct avmm_entry *oldest(const struct avmm_vcpu *v) { return &v->ring[v->view.tail & v->mask]; }

static bool has_below(const struct avmm_vcpu *v, uint64_t bound) {
    return v->view.tail != v->view.head && oldest(v)->stamp < bound;
}

static void look(struct avmm_vcpu *v) {
    struct avmm_view *w = &v->view;
    /* Before the ring is looked at: all that was put before the vCPU parked or ended is then in sight. */
    w->parked = atomic_load(&v->parked);
    w->ended = atomic_load(&v->ended);
    w->head = atomic_load_explicit(&v->head, memory_order_acquire); /* pairs with avmm_vcpu_put */
    w->tail = atomic_load_explicit(&v->tail, memory_order_relaxed);
}

/* Gather the run of posted writes, all as wide as the oldest entry and to its address, into `bytes`; how many, at least 1. */
static uint32_t gather(const struct avmm_vcpu *v, uint64_t bound, uint8_t *bytes, uint32_t room) {
    const struct avmm_entry *first = oldest(v);
    uint32_t n = 0, size = first->size;
    for (uint32_t at = v->view.tail; size <= room && at != v->view.head; at++) {
        const struct avmm_entry *e = &v->ring[at & v->mask];
        if (e->stamp >= bound || e->kind != first->kind || e->address != first->address || e->size != size || e->sync)
            break;
        memcpy(bytes, &e->data, size); /* little-endian, as the guest wrote it */
        bytes += size;
        room -= size;
        n++;
    }
    return n ? n : 1;
}

/* Move entries of one vCPU that are older than `bound` into the batch. */
static void take(struct avmm_vcpu *v, uint64_t bound, struct batch *b) {
    while (b->used < b->max && has_below(v, bound)) {
        const struct avmm_entry *e = oldest(v);
        struct avmm_event *o = &b->out[b->used++];
        *o = (struct avmm_event){.address = e->address, .data = e->data, .count = 1, .seq = e->seq, .kind = e->kind,
                                 .size = e->size, .sync = e->sync, .vcpu = (uint16_t)v->index};
        bool is_write = e->kind == AVMM_PIO_WRITE || e->kind == AVMM_MMIO_WRITE;
        if (is_write && e->size <= 4 && !e->sync) {
            uint32_t n = gather(v, bound, b->bytes + b->byte, b->nbytes - b->byte);
            if (n > 1) {
                o->data = b->byte;
                o->count = n;
                b->byte += n * e->size;
            }
        }
        v->view.tail += o->count;
    }
}

/* Take what is older than `limit` from `n` vCPUs, each of which has some, in order of age. */
static void merge(struct avmm_vcpu **ready, uint32_t n, uint64_t limit, struct batch *b) {
    while (n && b->used < b->max) {
        uint32_t first = 0;
        uint64_t bound = limit; /* the oldest entry of all the others */
        for (uint32_t i = 1; i < n; i++) {
            uint64_t stamp = oldest(ready[i])->stamp, least = oldest(ready[first])->stamp;
            if (stamp < least)
                first = i;
            uint64_t later = stamp < least ? least : stamp;
            bound = later < bound ? later : bound;
        }
        take(ready[first], bound, b);
        if (!has_below(ready[first], limit))
            ready[first] = ready[--n];
    }
}

/* False when the batch has no room for it. */
static bool report(struct batch *b, const struct avmm_vcpu *v, uint8_t kind, uint64_t data) {
    if (b->used == b->max)
        return false;
    b->out[b->used++] = (struct avmm_event){.kind = kind, .data = data, .count = 1, .vcpu = (uint16_t)v->index};
    return true;
}

static uint32_t reports_due(const struct avmm_vcpu *v) {
    return (v->view.parked != v->reported_parked) + (v->view.ended && !v->reported_ended);
}

/* Give the taken places back, and tell of a park or an end that all entries before it have been taken. False when not all is told. */
static bool settle(struct avmm_vcpu *v, struct batch *b) {
    const struct avmm_view *w = &v->view;
    if (w->tail != atomic_load_explicit(&v->tail, memory_order_relaxed)) {
        atomic_store(&v->tail, w->tail); /* pairs with has_room; avmm_wake orders it before `sleeping` is read */
        avmm_wake(v, AVMM_FOR_ROOM);
    }
    if (w->tail != w->head)
        return false;
    if (w->parked != v->reported_parked) {
        if (!report(b, v, AVMM_PARKED, w->parked))
            return false;
        v->reported_parked = w->parked;
    }
    if (w->ended && !v->reported_ended) {
        if (!report(b, v, AVMM_ENDED, 0))
            return false;
        v->reported_ended = 1;
    }
    return true;
}

/* Fill `ready` with those that have entries below `limit`; how many. `due`: the parks and ends to report, of all. */
static uint32_t look_at_all(struct avmm_vm *vm, uint64_t limit, uint32_t *due) {
    uint32_t n = 0;
    *due = 0;
    for (uint32_t i = 0; i < vm->max_vcpus; i++) {
        struct avmm_vcpu *v = vm->vcpus[i];
        if (!v)
            continue;
        look(v);
        *due += reports_due(v);
        if (has_below(v, limit))
            vm->ready[n++] = v;
    }
    return n;
}

uint32_t avmm_vm_drain(struct avmm_vm *vm, struct avmm_event *out, uint32_t max, uint8_t *bytes, uint32_t nbytes) {
    uint64_t value;
    ssize_t got = vm->seen ? 0 : read(vm->eventfd, &value, sizeof value);
    (void)got; /* EAGAIN: woken for nothing */
    vm->seen = false;
    /* After the read: a write that follows this exchange stays in the eventfd and wakes the loop again. */
    atomic_exchange(&vm->notified, AVMM_ASLEEP);
    uint64_t limit = atomic_load(&vm->stamps);
    uint32_t due, n = look_at_all(vm, limit, &due);
    due += __atomic_load_n(&vm->lost, __ATOMIC_RELAXED) && !vm->told_lost;
    uint32_t kept = due < max / 2 ? due : max / 2; /* room for reports, however much the guest floods */
    struct batch b = {.out = out, .max = max - kept, .bytes = bytes, .nbytes = nbytes};
    merge(vm->ready, n, limit, &b);
    b.max = max;
    bool all = true;
    for (uint32_t i = 0; i < vm->max_vcpus; i++) {
        struct avmm_vcpu *v = vm->vcpus[(vm->next + i) % vm->max_vcpus];
        if (v && !settle(v, &b))
            all = false;
    }
    vm->next = (vm->next + 1) % vm->max_vcpus;
    if (__atomic_load_n(&vm->lost, __ATOMIC_ACQUIRE) && !vm->told_lost && b.used < max) { /* pairs with the store in guard.c */
        b.out[b.used++] = (struct avmm_event){.kind = AVMM_LOST, .count = 1};
        vm->told_lost = true;
    }
    if (!all)
        avmm_notify(vm);
    return b.used;
}

int avmm_vm_linger(struct avmm_vm *vm) {
    uint32_t asleep = AVMM_ASLEEP, looking = AVMM_LOOKING;
    if (!atomic_compare_exchange_strong(&vm->notified, &asleep, AVMM_LOOKING))
        return true; /* called since the drain, by way of the eventfd */
    avmm_look_for(&vm->patience, vm->look_ns, &vm->notified, AVMM_CALLED);
    /* Who calls before this finds LOOKING and writes nothing, and is seen here; who calls after it writes. */
    vm->seen = !atomic_compare_exchange_strong(&vm->notified, &looking, AVMM_ASLEEP);
    return vm->seen;
}

void avmm_vm_doze(struct avmm_vm *vm) {
    uint32_t asleep = AVMM_ASLEEP; /* one who has called since the drain is not to be forgotten */
    atomic_compare_exchange_strong(&vm->notified, &asleep, AVMM_DOZING);
}

uint32_t *avmm_vm_lost(struct avmm_vm *vm) { return &vm->lost; }

struct avmm_table *avmm_vm_publish(struct avmm_vm *vm, struct avmm_table *table) {
    return atomic_exchange(&vm->table, table);
}

int avmm_table_used(struct avmm_vm *vm, const struct avmm_table *table) {
    if (atomic_load(&vm->table) == table)
        return 1;
    for (uint32_t i = 0; i < vm->max_vcpus; i++)
        if (vm->vcpus[i] && atomic_load(&vm->vcpus[i]->hazard) == table)
            return 1;
    return 0;
}

struct avmm_vm *avmm_vm_new(int eventfd, uint32_t max_vcpus, uint32_t look_ns) {
    size_t size = sizeof(struct avmm_vm) + max_vcpus * sizeof(struct avmm_vcpu *);
    struct avmm_vm *vm = aligned_alloc(64, (size + 63) & ~(size_t)63);
    struct avmm_vcpu **ready = calloc(max_vcpus, sizeof *ready);
    if (!vm || !ready) {
        free(vm);
        free(ready);
        return NULL;
    }
    memset(vm, 0, size);
    vm->eventfd = eventfd;
    vm->max_vcpus = max_vcpus;
    vm->look_ns = look_ns;
    vm->ready = ready;
    return vm;
}

void avmm_vm_free(struct avmm_vm *vm) {
    free(vm->ready);
    free(vm);
}
