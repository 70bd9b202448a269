/* The run loop of a vCPU thread, and the door between such threads and the event loop.
 *
 * A vCPU thread (vcpu_thread.c) is one call of avmm_vcpu_run. It looks every exit up in the VM's range table and either answers it from
 * there (shadow, posted, ignored, unclaimed), or asks the event loop and waits. What the loop must see goes through a ring per
 * vCPU (one producer, one consumer, in order, bounded), and is handed out in the order of all of them; one eventfd per VM wakes the loop. No function here touches Python.
 *
 * Threads: avmm_vcpu_run belongs to the vCPU thread; every other function to the event loop's thread.
 */
#ifndef AIOVMM_VCPU_H
#define AIOVMM_VCPU_H
#include <stddef.h>
#include <stdint.h>

/* Policy bits of one byte of a range; the values are aiovmm.bus.Policy's. */
#define AVMM_SHADOW_READ 1
#define AVMM_NOTE_READ 2
#define AVMM_POSTED_WRITE 4
#define AVMM_LATCH_WRITE 8
#define AVMM_IGNORE_WRITE 16
#define AVMM_POSTED_DWORD 32 /* with AVMM_IGNORE_WRITE: latched, and not posted */
#define AVMM_LAZY_WRITE 64
#define AVMM_DROP_SAME 128

/* Per-range counters, by index. */
#define AVMM_COUNT_SYNC 0
#define AVMM_COUNT_POSTED 1
#define AVMM_COUNT_SHADOW 2
#define AVMM_COUNT_IGNORED 3
#define AVMM_COUNTS 4

struct avmm_range {
    uint64_t base;
    uint64_t size;
    const uint8_t *policy; /* one byte an address, or NULL: every access waits for the loop */
    uint8_t *shadow;
    uint64_t *counts; /* AVMM_COUNTS of them */
    uint64_t ecam; /* not 0: the ports of PCI's configuration mechanism #1, whose data shows what the ECAM at this address does */
};

struct avmm_table {
    uint32_t count[2]; /* by space: 0 port I/O, 1 MMIO */
    struct avmm_range *ranges[2]; /* sorted by base, not overlapping */
};

/* Kinds of event. The first four are 2 * space + is_write. */
#define AVMM_PIO_READ 0
#define AVMM_PIO_WRITE 1
#define AVMM_MMIO_READ 2
#define AVMM_MMIO_WRITE 3
#define AVMM_EOI 4    /* data: vector of a level-triggered interrupt that the guest has ended */
#define AVMM_PARKED 5 /* data: generation of the pause request that is now in force */
#define AVMM_ENDED 6  /* the vCPU thread has left the guest for good; avmm_vcpu_final says why */
#define AVMM_LOST 7   /* a part of the guest's memory is gone (guard.h); once a VM, of no vCPU */
#define AVMM_NO_SYNDROME 8 /* arm64: an access at `address` that cannot be told to a device; data: ISS of ESR_EL2 */

struct avmm_event {
    uint64_t address;
    uint64_t data;  /* bytes written, little-endian; with count > 1 an offset into the drain's byte buffer */
    uint32_t count; /* equal one-byte writes to one address, taken together */
    uint32_t seq;   /* names a synchronous exit, for avmm_vcpu_complete */
    uint16_t vcpu;
    uint8_t kind;
    uint8_t size; /* 1, 2, 4 or 8 */
    uint32_t sync; /* 1: the vCPU waits for avmm_vcpu_complete */
};

/* Why a run ended. */
#define AVMM_END_STOP 0  /* avmm_vcpu_stop */
#define AVMM_END_ERRNO 1 /* KVM_RUN failed with `code` */
#define AVMM_END_EXIT 2  /* KVM exit reason `code` */

struct avmm_final {
    uint32_t kind;
    uint32_t code;
    uint32_t detail; /* suberror, system event type, physical CPU */
    uint32_t ndata;
    uint64_t data[16];
};

struct avmm_counters { /* of one vCPU; written by its thread only */
    uint64_t exits;    /* returns from KVM_RUN to user space */
    uint64_t sync;     /* accesses that waited for the loop */
    uint64_t posted;
    uint64_t shadow;
    uint64_t ignored;
    uint64_t missed;   /* accesses to no range */
    uint64_t full;     /* times the ring was full */
    uint64_t bus_locks; /* x86: instructions that locked the memory bus of the whole host */
    uint64_t notifies;  /* x86: times that an instruction let in no interrupt for a whole window */
};

struct avmm_vm;
struct avmm_vcpu;

/* State shared by the vCPUs of one VM. `eventfd` is non-blocking and stays the caller's. `look_ns`: how long a vCPU that waits, and
 * avmm_vm_linger, look for the other side before they sleep. NULL when out of memory. */
struct avmm_vm *avmm_vm_new(int eventfd, uint32_t max_vcpus, uint32_t look_ns);
void avmm_vm_free(struct avmm_vm *vm);

/* What avmm_guard_tell is to set for this VM's memory. The eventfd goes with it. */
uint32_t *avmm_vm_lost(struct avmm_vm *vm);

/* Put `table` in force and return the one it replaces, which stays in use until avmm_table_used says otherwise. */
struct avmm_table *avmm_vm_publish(struct avmm_vm *vm, struct avmm_table *table);
int avmm_table_used(struct avmm_vm *vm, const struct avmm_table *table);

/* Take up to `max` events from all rings, in the order in which the vCPUs put them wherever the guest can tell: across vCPUs
 * too, what one did under a lock of the guest's comes before what the next holder does. Runs of one-byte posted writes are gathered into `bytes`. When something is left,
 * the eventfd is signalled again. Returns the number of events. */
uint32_t avmm_vm_drain(struct avmm_vm *vm, struct avmm_event *out, uint32_t max, uint8_t *bytes, uint32_t nbytes);

/* Look for further events for some microseconds, if that has proved worth it: whether there are any. If so they must be drained
 * now, for nothing else may tell of them; if not, avmm_vm_doze must follow, for what was posted lazily meanwhile. For after a
 * drain that had events, since drivers make several exits in a row. */
int avmm_vm_linger(struct avmm_vm *vm);

/* The loop drains again within milliseconds, whatever happens: until then lazily posted writes do not wake it, unless they
 * fill half a ring. */
void avmm_vm_doze(struct avmm_vm *vm);

/* A vCPU on `fd` with a ring of `entries` (a power of two) in `ring`, which is the caller's and holds anything: AVMM_ENTRY_SIZE
 * bytes each, 8-byte aligned. NULL with `*error` an errno on failure. */
enum { AVMM_ENTRY_SIZE = 32 };
struct avmm_vcpu *avmm_vcpu_new(struct avmm_vm *vm, uint32_t index, int fd, size_t run_size, void *ring, uint32_t entries,
                                int *error);
void avmm_vcpu_free(struct avmm_vcpu *v);

/* What the system's tools call the calling thread: 15 bytes and a NUL. */
void avmm_name_thread(const char *name);

/* Whether the kernel keeps threads from sharing a core (prctl(2), PR_SCHED_CORE): 0, or an errno: ENODEV where no core has
 * several, EINVAL where it cannot. */
int avmm_has_core_scheduling(void);

/* Enter the guest and stay until it is stopped or ends. Call with avmm_vcpu_arm done before. */
void avmm_vcpu_run(struct avmm_vcpu *v);
void avmm_vcpu_arm(struct avmm_vcpu *v);

/* Have a thread of its own do both; nobody waits for it to begin. The system's tools call it `name` (15 bytes are kept). It runs
 * at its starter's nice value plus `nice`, or, from 20 on, only when the host has nothing else to do (SCHED_IDLE). No privilege is
 * needed for that, but to take it back. `core` is what may share a core with it: 0 anything, -1 nothing, or what the vCPU may whose
 * avmm_vcpu_core that is; where that is not 0 it is waited for, and is so before the guest is entered. Returns 0 or an errno. The one
 * before it must have been joined. */
int avmm_vcpu_start(struct avmm_vcpu *v, const char *name, int nice, int core);

/* What it may share a core with, once it is kept apart: a thread, for the `core` of others; 0: it is not. */
int avmm_vcpu_core(const struct avmm_vcpu *v);

/* Whether there is a thread that has not left the guest for good. Never in a forked child. */
int avmm_vcpu_runs(struct avmm_vcpu *v);

/* What the system knows the thread by while it is in its run; 0 before and after that. */
int avmm_vcpu_tid(struct avmm_vcpu *v);

/* Have the thread, which has been started, run on the processors with a 1 in `size` bytes only. Returns 0 or an errno. */
int avmm_vcpu_run_on(struct avmm_vcpu *v, const uint8_t *cpus, size_t size);

/* Wait for the thread's end, for `timeout_ns` at most unless that is negative. Returns 0, also when there is none, or ETIMEDOUT. */
int avmm_vcpu_join(struct avmm_vcpu *v, int64_t timeout_ns);

void avmm_vcpu_stop(struct avmm_vcpu *v);
void avmm_vcpu_pause(struct avmm_vcpu *v, uint32_t generation);
void avmm_vcpu_resume(struct avmm_vcpu *v);

/* Answer synchronous exit `seq` with `data`. Returns 0, or -1 when nobody waits for it any more. */
int avmm_vcpu_complete(struct avmm_vcpu *v, uint32_t seq, uint64_t data);

const struct avmm_final *avmm_vcpu_final(const struct avmm_vcpu *v);
const struct avmm_counters *avmm_vcpu_counters(const struct avmm_vcpu *v);

#endif
