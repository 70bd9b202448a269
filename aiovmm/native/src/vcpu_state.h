/* What the two sides of the exit ring share: the vCPU thread's (vcpu_ring.c) and the event loop's (drain.c). Private to them.
 *
 * Every field says who writes it; what both touch is atomic, and each ordering names its partner. */
#ifndef AIOVMM_VCPU_STATE_H
#define AIOVMM_VCPU_STATE_H
#include "pace.h"
#include "vcpu.h"
#include "vcpu_arch.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* Of `notified`. */
#define AVMM_ASLEEP 0u
#define AVMM_CALLED 1u  /* the eventfd has been written, unless it was LOOKING, and the loop has not looked since */
#define AVMM_DOZING 2u  /* it will look by itself in a moment */
#define AVMM_LOOKING 3u /* it waits right here for this to change, and will doze after that */

/* What a vCPU thread may sleep for. */
#define AVMM_FOR_ANSWER 1u
#define AVMM_FOR_ROOM 2u
#define AVMM_FOR_RESUME 4u
#define AVMM_FOR_PACE 8u
#define AVMM_FOR_ANYTHING 15u

struct avmm_entry { /* one place of a ring */
    uint64_t address;
    uint64_t data;
    uint64_t stamp; /* its place in the order of all that the VM's vCPUs put */
    uint32_t seq;
    uint8_t kind;
    uint8_t size;
    uint8_t sync;
    uint8_t lazy; /* need not wake the loop */
};

struct avmm_patience { /* of one side, with looking for what the other will do in a moment */
    uint32_t skips; /* this many looks are left out after one in vain */
    uint32_t left;  /* and this many still are */
};

struct avmm_pace { /* of one kind of exit */
    _Atomic uint64_t interval, burst; /* written by the loop */
    alignas(64) _Atomic uint64_t due; /* by the vCPU threads */
};

struct avmm_vm {
    _Atomic(struct avmm_table *) table;
    _Atomic uint32_t notified; /* how far the loop is from looking: ASLEEP, CALLED, DOZING or LOOKING */
    int eventfd;
    uint32_t max_vcpus;
    uint32_t look_ns; /* how long either side looks for the other before it sleeps; 0: not at all */
    uint32_t next; /* whose park or end the next drain reports first, so that no vCPU starves the others */
    struct avmm_vcpu **ready; /* of a drain: those with entries to take */
    struct avmm_patience patience; /* of the loop */
    uint32_t lost;    /* set by guard.c from a signal handler: a part of the guest's memory is gone */
    bool told_lost;   /* the loop has been told */
    bool seen; /* it was LOOKING when it was called, so the eventfd need not be read: who wrote it late wakes the loop in vain */
    struct avmm_pace paces[AVMM_PACES]; /* see pace.h */
    alignas(64) _Atomic uint64_t stamps; /* given out so far */
    alignas(64) struct avmm_vcpu *vcpus[];
};

struct avmm_view { /* what a drain saw of a vCPU when it began */
    uint32_t parked, ended;
    uint32_t head, tail; /* tail advances with what is taken */
};

struct avmm_vcpu {
    struct avmm_vm *vm;
    struct kvm_run *run;
    size_t run_size;
    struct avmm_entry *ring;
    uint32_t mask;
    uint32_t index;
    int fd;

    /* The vCPU thread's side. */
    alignas(64) _Atomic uint32_t head; /* entries ever put */
    _Atomic(struct avmm_table *) hazard; /* the table this thread is reading */
    _Atomic uint32_t asked;  /* the last synchronous exit */
    _Atomic uint32_t parked; /* generation of the pause it is parked for; stays after it went on */
    _Atomic uint32_t ended;
    struct avmm_patience patience;
    struct avmm_counters counters;
    struct avmm_final final;
    struct avmm_vcpu_arch arch;

    /* The loop's side. */
    alignas(64) _Atomic uint32_t tail; /* entries ever taken */
    pthread_t thread;  /* once `starter` is the process that started it, and until it has been joined */
    void *stack;
    pid_t starter;
    char name[16];     /* what the system calls it, and how far it stands back: read by the thread as it begins */
    int nice;
    int core;           /* as avmm_vcpu_start has it */
    _Atomic int apart;  /* 0 until its thread has been kept apart: then that, or a negative errno */
    uint32_t reported_parked;
    uint32_t reported_ended;
    struct avmm_view view;
    uint64_t reply;
    _Atomic uint32_t answered; /* seq that `reply` belongs to */
    _Atomic uint32_t request;
    _Atomic uint32_t generation; /* of the latest pause request */

    /* Both: where the vCPU thread sleeps. */
    alignas(64) _Atomic uint32_t wake;
    _Atomic uint32_t sleeping; /* AVMM_FOR_..., or 0 */
    pthread_mutex_t tid_lock; /* keeps `tid` alive while it is signalled */
    pid_t tid;
    bool kicked; /* the kick signal is pending at the thread, which has not consumed it; under tid_lock */
};

/* After an entry is in a ring. The exchange pairs with the one in avmm_vm_drain: whoever finds AVMM_CALLED here knows that the
 * drain has yet to clear it, and looks into the rings after that; so no entry is left lying. */
static inline void avmm_notify(struct avmm_vm *vm) {
    uint32_t was = atomic_exchange(&vm->notified, AVMM_CALLED);
    if (was != AVMM_CALLED && was != AVMM_LOOKING) {
        uint64_t one = 1;
        ssize_t n = write(vm->eventfd, &one, sizeof one);
        (void)n; /* EAGAIN: the counter is at its limit, so the loop is awake anyway */
    }
}

/* The same for an entry that can wait. A read-modify-write, so that it is ordered after the entry as the exchange is: who still
 * finds AVMM_DOZING here, or AVMM_LOOKING, comes before the drain that ends it. */
static inline void avmm_notify_lazily(struct avmm_vm *vm) {
    uint32_t is = atomic_fetch_or(&vm->notified, 0);
    if (is != AVMM_DOZING && is != AVMM_LOOKING)
        avmm_notify(vm);
}

static inline void avmm_wake(struct avmm_vcpu *v, uint32_t what) {
    atomic_fetch_add(&v->wake, 1);
    if (atomic_load(&v->sleeping) & what)
        syscall(SYS_futex, &v->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Whether `*at` becomes `value` within `ns`, if looking for that has paid lately: to be woken on an idle processor takes longer
 * than most exits take to be served. Relaxed: who acts on it loads again, with the order that it needs. */
bool avmm_look_for(struct avmm_patience *p, uint32_t ns, const _Atomic uint32_t *at, uint32_t value);

/* Of the vCPU thread: put an entry, and have the loop come for it. False when the vCPU was stopped before there was room. */
bool avmm_vcpu_put(struct avmm_vcpu *v, const struct avmm_entry *e);

/* Of the vCPU thread, after each exit of this kind: stand still while the VM has made more than it may, unless there is a request. */
void avmm_vcpu_pace(struct avmm_vcpu *v, enum avmm_paced kind);

/* Keep what an exit says more, at most 16 words. */
void avmm_keep_data(struct avmm_final *f, uint32_t detail, uint32_t ndata, const uint64_t *data);

/* What each architecture has its own form of (x86_64/, aarch64/). */
enum avmm_next { AVMM_GOES_ON, AVMM_OVER, AVMM_ENDS }; /* over: it was stopped; ends: the exit is one that ends the run */
void avmm_arch_left(struct avmm_vcpu *v); /* after every exit, whatever it is */
bool avmm_arch_harmed(struct avmm_vcpu *v); /* then, too: whether the guest did what holds up the whole host; it is counted */
enum avmm_next avmm_arch_exit(struct avmm_vcpu *v); /* an exit that the common part does not know */
void avmm_arch_debug(const struct kvm_run *run, struct avmm_final *f); /* what KVM_EXIT_DEBUG says */

#endif
