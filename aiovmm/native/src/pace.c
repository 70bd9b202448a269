#include "pace.h"
#include "look.h"
#include "vcpu_state.h"

/* The time at which the next exit is due, kept as virtual scheduling does it (ITU-T I.371, annex A: GCRA): an exit that comes
 * early by more than the burst waits for as long as it is too early. All vCPUs of a VM draw on the one time. */

/* Nanoseconds from now until the exit that has just been made may have been made. */
static uint64_t draw(struct avmm_pace *pace, uint64_t interval) {
    uint64_t now = avmm_now_ns(), burst = atomic_load_explicit(&pace->burst, memory_order_relaxed);
    uint64_t due = atomic_load_explicit(&pace->due, memory_order_relaxed), mine;
    do {
        mine = due > now ? due : now; /* what was not drawn is gone; the burst is what may be drawn ahead */
    } while (!atomic_compare_exchange_weak(&pace->due, &due, mine + interval));
    return mine > now + burst ? mine - now - burst : 0;
}

static bool asked_for(const struct avmm_vcpu *v) { return atomic_load(&v->request) != 0; }

void avmm_vcpu_pace(struct avmm_vcpu *v, enum avmm_paced kind) {
    struct avmm_pace *pace = &v->vm->paces[kind];
    uint64_t interval = atomic_load_explicit(&pace->interval, memory_order_relaxed);
    if (!interval)
        return;
    uint64_t wait = draw(pace, interval), end = avmm_now_ns() + wait;
    for (uint64_t now = end - wait; now < end && atomic_load(&pace->interval) == interval; now = avmm_now_ns()) {
        uint32_t seen = atomic_load(&v->wake);
        atomic_store(&v->sleeping, AVMM_FOR_PACE); /* pairs with avmm_wake, as in avmm_wait_until */
        if (asked_for(v)) /* a pause or a stop does not wait; the exit is drawn all the same */
            break;
        struct timespec left = {(time_t)((end - now) / 1000000000u), (long)((end - now) % 1000000000u)};
        syscall(SYS_futex, &v->wake, FUTEX_WAIT_PRIVATE, seen, &left, NULL, 0);
    }
    atomic_store_explicit(&v->sleeping, 0, memory_order_relaxed);
}

void avmm_vm_pace(struct avmm_vm *vm, enum avmm_paced kind, uint64_t interval, uint64_t burst) {
    struct avmm_pace *pace = &vm->paces[kind];
    atomic_store(&pace->burst, burst);
    atomic_store(&pace->due, 0); /* what is due by the rule before is forgotten */
    atomic_store(&pace->interval, interval);
    for (uint32_t i = 0; i < vm->max_vcpus; i++)
        if (vm->vcpus[i])
            avmm_wake(vm->vcpus[i], AVMM_FOR_PACE);
}
