/* What the parts of a vCPU thread share: its run (vcpu.c), the guest's accesses (vcpu_access.c) and the ring that tells the loop of
 * them (vcpu_ring.c). Private to them. */
#ifndef AIOVMM_VCPU_PARTS_H
#define AIOVMM_VCPU_PARTS_H
#include "vcpu_state.h"

/* Of `request`. */
#define AVMM_REQUEST_STOP 1u
#define AVMM_REQUEST_PAUSE 2u

static inline bool avmm_stopping(const struct avmm_vcpu *v) { return atomic_load(&v->request) & AVMM_REQUEST_STOP; }

/* A counter that others may read meanwhile. */
static inline void avmm_bump(uint64_t *counter) { __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED); }

/* Sleep until `ready`, which is asked again after each avmm_wake for `what`. */
void avmm_wait_until(struct avmm_vcpu *v, uint32_t what, bool (*ready)(const struct avmm_vcpu *));

/* Put a synchronous exit and wait for its answer. False when the vCPU was stopped first. */
bool avmm_ask(struct avmm_vcpu *v, struct avmm_entry *e, uint64_t *answer);

/* One access of 1, 2, 4 or 8 bytes at `p`, to `space` 0 (ports) or 1 (memory). False when the vCPU was stopped in it. */
bool avmm_guest_access(struct avmm_vcpu *v, int space, bool is_write, uint64_t address, uint32_t size, uint8_t *p);

#endif
