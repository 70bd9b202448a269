/* The vCPU thread's side of the exit ring: an exit is put there, and where the guest needs an answer it is waited for. */
#include "look.h"
#include "vcpu_parts.h"

/* ---- looking, and sleeping ---- */

/* Looking in vain makes the next looks rarer, so that a guest whose exits are further apart loses 1 part in SPIN_SKIPS of the
 * time of a look at each. */
#define SPIN_SKIPS 15u

bool avmm_look_for(struct avmm_patience *p, uint32_t ns, const _Atomic uint32_t *at, uint32_t value) {
    if (!ns)
        return false;
    if (p->left) {
        p->left--;
        return false;
    }
    uint64_t end = avmm_now_ns() + ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(at, memory_order_relaxed) == value) {
                p->skips = 0;
                return true;
            }
            avmm_relax();
        }
    } while (avmm_now_ns() < end);
    p->left = p->skips = p->skips * 2 + 1 < SPIN_SKIPS ? p->skips * 2 + 1 : SPIN_SKIPS;
    return false;
}

void avmm_wait_until(struct avmm_vcpu *v, uint32_t what, bool (*ready)(const struct avmm_vcpu *)) {
    for (;;) {
        uint32_t seen = atomic_load(&v->wake);
        /* Sequentially consistent, as is avmm_wake: either it sees `sleeping`, or we see what it made true. */
        atomic_store(&v->sleeping, what);
        if (ready(v))
            break;
        syscall(SYS_futex, &v->wake, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    atomic_store_explicit(&v->sleeping, 0, memory_order_relaxed);
}

/* ---- the ring ---- */

static bool has_room(const struct avmm_vcpu *v) {
    return atomic_load_explicit(&v->head, memory_order_relaxed) - atomic_load(&v->tail) <= v->mask;
}

/* Whether the loop had better come soon, be it only for room. */
static bool is_filling(const struct avmm_vcpu *v, uint32_t head) {
    return head - atomic_load_explicit(&v->tail, memory_order_relaxed) > v->mask / 2;
}

static bool room_or_stop(const struct avmm_vcpu *v) { return has_room(v) || avmm_stopping(v); }

bool avmm_vcpu_put(struct avmm_vcpu *v, const struct avmm_entry *e) {
    if (!has_room(v)) {
        avmm_bump(&v->counters.full);
        avmm_wait_until(v, AVMM_FOR_ROOM, room_or_stop);
        if (!has_room(v))
            return false;
    }
    uint32_t head = atomic_load_explicit(&v->head, memory_order_relaxed);
    struct avmm_entry *place = &v->ring[head & v->mask];
    *place = *e;
    place->stamp = atomic_fetch_add(&v->vm->stamps, 1); /* pairs with the load in avmm_vm_drain */
    atomic_store_explicit(&v->head, head + 1, memory_order_release); /* pairs with the acquire in look */
    if (e->lazy && !is_filling(v, head))
        avmm_notify_lazily(v->vm);
    else
        avmm_notify(v->vm);
    return true;
}

static bool answered_or_stop(const struct avmm_vcpu *v) {
    return atomic_load(&v->answered) == atomic_load_explicit(&v->asked, memory_order_relaxed) || avmm_stopping(v);
}

bool avmm_ask(struct avmm_vcpu *v, struct avmm_entry *e, uint64_t *answer) {
    e->sync = 1;
    e->seq = atomic_load_explicit(&v->asked, memory_order_relaxed) + 1;
    atomic_store_explicit(&v->asked, e->seq, memory_order_relaxed); /* published by avmm_vcpu_put */
    avmm_bump(&v->counters.sync);
    if (!avmm_vcpu_put(v, e))
        return false;
    avmm_look_for(&v->patience, v->vm->look_ns, &v->answered, e->seq);
    avmm_wait_until(v, AVMM_FOR_ANSWER, answered_or_stop);
    if (atomic_load_explicit(&v->answered, memory_order_acquire) != e->seq) /* pairs with avmm_vcpu_complete */
        return false;
    *answer = v->reply;
    return true;
}
