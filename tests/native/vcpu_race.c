/* The run loop against a made-up KVM, for the thread and address sanitizers (test_vcpu_sanitized.py).
 *
 * vcpu.c and drain.c are compiled with ioctl renamed to fake_ioctl, below: a guest model that leaves "KVM_RUN" with one exit after the
 * other and checks what it is answered. main is the event loop. Phase 1 runs every guest to its end, amid pauses and
 * changes of the range table, and checks order and answers on both sides. Phase 2 stops guests at random, in any state. Phase 3
 * ends a run with each exit that ends one. In phase 4 the guests take turns under a lock of theirs, each posting one value at
 * its turn, and the order of all is checked. In phase 5 they read a register that is whole in the shadow at times, and at others only
 * the loop can tell. */
#include "look.h"
#include "vcpu.h"

#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUESTS 3
#define RUN_SIZE 8192
#define DATA 4096 /* of port I/O, in the run area */
#define ASK 0x10
#define POST 0x20
#define SHADOW 0x30
#define NOBODY 0x40
#define BASE_ANSWER 0x10000

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct guest { /* its thread's, unless parked or ended */
    struct kvm_run *run;
    struct avmm_vcpu *vcpu;
    uint64_t ring[8 * AVMM_ENTRY_SIZE / 8];
    pthread_t thread;
    int fd;
    unsigned seed;
    uint64_t exits, limit; /* limit 0: never ends */
    uint64_t told;         /* accesses that reach the loop */
    uint8_t posted;        /* next value of the posted port */
    bool strict;           /* check answers: off once it may have been stopped in the middle of one */
    int pending;           /* what the last exit was */
    uint32_t last;         /* the exit reason that ends it */
    bool takes_turns;      /* posts the next value of all when it is its turn */
    bool only_reads;       /* the register at SHADOW */
};

struct loop_side { /* main's view of a guest */
    uint64_t told;
    uint8_t posted;
    uint32_t generation;
    bool parked, pausing, ended;
    int asked; /* of a register that is not in the shadow */
};

static struct guest guests[GUESTS];
static struct loop_side sides[GUESTS];
static uint8_t shadow_byte, policies[3][8];
static uint64_t counts[3][AVMM_COUNTS];
static _Atomic uint64_t turn;   /* whose it is, modulo GUESTS; also the value to post */
static uint64_t turns_told;     /* values of turns that main was told */

static void finish_last_exit(struct guest *g) {
    uint8_t *data = (uint8_t *)g->run + DATA;
    uint32_t word;
    memcpy(&word, data, sizeof word);
    if (g->strict && g->pending == ASK)
        CHECK(word == BASE_ANSWER + (uint32_t)g->told);
    if ((g->strict || g->only_reads) && g->pending == SHADOW)
        CHECK(data[0] % 2 == 0); /* it counts by twos, and the area holds 0xff where nothing was stored */
    if (g->strict && g->pending == NOBODY)
        CHECK(word == 0xffffffff);
    g->pending = 0;
}

static void port(struct guest *g, uint16_t port, int direction, int size, int count) {
    g->run->exit_reason = KVM_EXIT_IO;
    g->run->io.direction = direction;
    g->run->io.size = size;
    g->run->io.count = count;
    g->run->io.port = port;
    g->run->io.data_offset = DATA;
}

static int next_exit(struct guest *g) {
    uint8_t *data = (uint8_t *)g->run + DATA;
    switch (g->only_reads ? 2 : rand_r(&g->seed) % 8) {
    case 0:
        port(g, ASK, KVM_EXIT_IO_IN, 4, 1);
        g->told++;
        g->pending = ASK;
        break;
    case 1: /* a write that waits */
        g->run->exit_reason = KVM_EXIT_MMIO;
        g->run->mmio.phys_addr = ASK;
        g->run->mmio.len = 8;
        g->run->mmio.is_write = 1;
        g->told++;
        break;
    case 2:
        port(g, SHADOW, KVM_EXIT_IO_IN, 1, 1);
        data[0] = 0xff;
        g->pending = SHADOW;
        break;
    case 3:
        port(g, NOBODY, KVM_EXIT_IO_IN, 4, 1);
        g->pending = NOBODY;
        break;
    case 4:
        g->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
        g->run->eoi.vector = 0x40;
        g->told++;
        break;
    default: { /* a string of posted bytes */
        int n = 1 + rand_r(&g->seed) % 9;
        port(g, POST, KVM_EXIT_IO_OUT, 1, n);
        for (int i = 0; i < n; i++)
            data[i] = g->posted++;
        g->told += n;
    }
    }
    return 0;
}

static int interrupted(void) {
    errno = EINTR;
    return -1;
}

static bool kicked(void) {
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGURG);
}

/* Halted: only a kick gets it out, which stays pending as in KVM. */
static int halt(void) {
    while (!kicked())
        usleep(100);
    return interrupted();
}

/* An exit that ends the run, with a number for each of its fields. */
static int last_exit(struct guest *g) {
    struct kvm_run *run = g->run;
    run->exit_reason = g->last;
    switch (g->last) {
    case KVM_EXIT_UNKNOWN:
        run->hw.hardware_exit_reason = 11;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        run->fail_entry.hardware_entry_failure_reason = 21;
        run->fail_entry.cpu = 22;
        break;
    case KVM_EXIT_DEBUG:
        run->debug.arch = (struct kvm_debug_exit_arch){.exception = 31, .pc = 32, .dr6 = 33, .dr7 = 34};
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        run->internal.suberror = 41;
        run->internal.ndata = 99; /* more than there is room for */
        for (int i = 0; i < 16; i++)
            run->internal.data[i] = 42 + i;
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        run->system_event.type = 61;
        run->system_event.ndata = 1;
        run->system_event.data[0] = 62;
        break;
    }
    return 0;
}

/* The guest's lock: it is passed on when the instruction after the access runs, that is at the next KVM_RUN. */
static int take_turn(struct guest *g) {
    uint64_t mine = (uint64_t)(g - guests);
    if (g->pending)
        atomic_fetch_add_explicit(&turn, 1, memory_order_acq_rel);
    g->pending = 0;
    while (atomic_load_explicit(&turn, memory_order_acquire) % GUESTS != mine)
        if (kicked() || __atomic_load_n(&g->run->immediate_exit, __ATOMIC_ACQUIRE))
            return interrupted();
        else
            sched_yield();
    if (g->limit && atomic_load(&turn) >= g->limit) {
        g->pending = 1; /* for the next one to end as well */
        return atomic_fetch_add(&turn, 1), last_exit(g);
    }
    port(g, POST, KVM_EXIT_IO_OUT, 1, 1);
    ((uint8_t *)g->run)[DATA] = (uint8_t)atomic_load(&turn);
    g->pending = 1;
    return 0;
}

int fake_ioctl(int fd, unsigned long request, ...) {
    if (request != KVM_RUN)
        return 0; /* the signal mask, the clock */
    struct guest *g = guests;
    while (g->fd != fd)
        g++;
    if (!g->takes_turns)
        finish_last_exit(g);
    if (__atomic_load_n(&g->run->immediate_exit, __ATOMIC_ACQUIRE))
        return interrupted();
    if (kicked())
        return interrupted();
    g->exits++;
    if (g->takes_turns)
        return take_turn(g);
    if (g->limit && g->exits >= g->limit)
        return last_exit(g);
    return !g->limit && !g->only_reads && g->exits % 64 == 0 ? halt() : next_exit(g);
}

static struct avmm_table *make_table(void) {
    struct avmm_table *t = calloc(1, sizeof *t);
    for (int space = 0; space < 2; space++) {
        struct avmm_range *r = calloc(3, sizeof *r);
        for (int i = 0; i < 3; i++)
            r[i] = (struct avmm_range){ASK + 0x10 * i, 8, i ? policies[i] : NULL, &shadow_byte, counts[i], 0};
        t->ranges[space] = r;
        t->count[space] = 3;
    }
    return t;
}

static void free_table(struct avmm_table *t) {
    free(t->ranges[0]);
    free(t->ranges[1]);
    free(t);
}

/* Replaced tables wait here until no vCPU reads them. */
static void publish(struct avmm_vm *vm) {
    static struct avmm_table *retired[GUESTS + 8];
    for (size_t i = 0; i < sizeof retired / sizeof *retired; i++) {
        if (retired[i] && avmm_table_used(vm, retired[i]))
            continue;
        if (retired[i])
            free_table(retired[i]);
        retired[i] = avmm_vm_publish(vm, make_table());
        return;
    }
    CHECK(!"more tables in use than vCPUs");
}

static void handle(const struct avmm_event *e, const uint8_t *bytes) {
    struct guest *g = &guests[e->vcpu];
    struct loop_side *s = &sides[e->vcpu];
    uint64_t answer = 0;
    switch (e->kind) {
    case AVMM_PARKED:
        CHECK(e->data <= s->generation);
        s->parked = s->pausing && e->data == s->generation;
        return;
    case AVMM_ENDED:
        s->ended = true;
        return;
    case AVMM_PIO_WRITE:
        CHECK(e->address == POST && !e->sync);
        for (uint32_t i = 0; g->takes_turns && i < e->count; i++, turns_told++)
            CHECK((e->count > 1 ? bytes[e->data + i] : (uint8_t)e->data) == (uint8_t)turns_told);
        for (uint32_t i = 0; i < e->count; i++)
            if (g->strict)
                CHECK((e->count > 1 ? bytes[e->data + i] : (uint8_t)e->data) == (uint8_t)(s->posted + i));
        s->posted += e->count;
        break;
    case AVMM_PIO_READ:
        if (g->only_reads) {
            CHECK(e->address == SHADOW && e->sync && avmm_vcpu_complete(g->vcpu, e->seq, 2) == 0);
            s->asked++;
            return;
        }
        CHECK(e->address == ASK && e->sync && e->size == 4);
        answer = BASE_ANSWER + s->told + 1;
        break;
    case AVMM_MMIO_WRITE:
        CHECK(e->address == ASK && e->sync && e->size == 8);
        break;
    default:
        CHECK(e->kind == AVMM_EOI && e->data == 0x40);
    }
    s->told += e->count;
    __atomic_fetch_add(&shadow_byte, 2, __ATOMIC_RELEASE);
    if (e->sync)
        CHECK(avmm_vcpu_complete(g->vcpu, e->seq, answer) == 0);
}

static bool dozes; /* looks by itself after events, as it must if something is posted lazily */

/* What the loop does when the eventfd is readable. A wake-up that is lost shows as a time-out, unless it dozes. */
static void serve(struct avmm_vm *vm, int fd, int timeout) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    static bool dozing;
    if (poll(&p, 1, dozing ? 1 : timeout) == 0 && !dozing) {
        CHECK(timeout < 1000);
        return;
    }
    struct avmm_event events[8];
    uint8_t bytes[16];
    uint32_t n;
    do {
        n = avmm_vm_drain(vm, events, 8, bytes, sizeof bytes);
        for (uint32_t i = 0; i < n; i++)
            handle(&events[i], bytes);
    } while (n && rand() % 8 && avmm_vm_linger(vm));
    dozing = dozes && n > 0; /* as the event loop's timer: until a drain finds nothing */
    if (dozing)
        avmm_vm_doze(vm);
}

/* When all is served there is nothing left to wake for. */
static void check_quiet(struct avmm_vm *vm, int fd) {
    struct avmm_event event;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint8_t byte;
    CHECK(avmm_vm_drain(vm, &event, 1, &byte, 1) == 0);
    CHECK(poll(&p, 1, 0) == 0);
}

static void *run(void *vcpu) {
    avmm_vcpu_run(vcpu);
    return NULL;
}

static void start(struct guest *g) {
    avmm_vcpu_arm(g->vcpu);
    sides[g - guests].ended = false;
    CHECK(pthread_create(&g->thread, NULL, run, g->vcpu) == 0);
}

static void pause_and_look(struct avmm_vm *vm, int fd, int i) {
    struct loop_side *s = &sides[i];
    s->pausing = true;
    avmm_vcpu_pause(guests[i].vcpu, ++s->generation);
    if (rand() % 4) {
        while (!s->parked && !s->ended)
            serve(vm, fd, 20000);
        if (s->parked && guests[i].strict)
            CHECK(guests[i].told == s->told); /* a parked guest's state is ours to read, and all it did has come */
    }
    s->parked = s->pausing = false;
    avmm_vcpu_resume(guests[i].vcpu);
}

static void phase_1(struct avmm_vm *vm, int fd, uint64_t limit) {
    for (int i = 0; i < GUESTS; i++) {
        guests[i].strict = true;
        guests[i].limit = limit;
        guests[i].last = KVM_EXIT_SHUTDOWN;
        start(&guests[i]);
    }
    for (bool all = false; !all;) {
        int dice = rand() % 16;
        if (dice < GUESTS && !sides[dice].ended)
            pause_and_look(vm, fd, dice);
        else if (dice == 15)
            publish(vm);
        all = true;
        for (int i = 0; i < GUESTS; i++)
            all &= sides[i].ended;
        if (!all)
            serve(vm, fd, 20000);
    }
    for (int i = 0; i < GUESTS; i++) {
        pthread_join(guests[i].thread, NULL);
        CHECK(avmm_vcpu_final(guests[i].vcpu)->code == KVM_EXIT_SHUTDOWN);
        CHECK(guests[i].told == sides[i].told);
    }
}

static void phase_2(struct avmm_vm *vm, int fd, int rounds) {
    for (int i = 0; i < GUESTS; i++)
        guests[i].strict = false, guests[i].limit = 0;
    while (rounds--) {
        for (int i = 0; i < GUESTS; i++)
            start(&guests[i]);
        for (int n = rand() % 32; n > 0; n--)
            serve(vm, fd, 1);
        for (int i = 0; i < GUESTS; i++)
            avmm_vcpu_stop(guests[i].vcpu);
        for (int i = 0; i < GUESTS; i++)
            pthread_join(guests[i].thread, NULL); /* nobody drains: a full ring must not hold it */
        while (!sides[0].ended || !sides[1].ended || !sides[2].ended)
            serve(vm, fd, 20000);
    }
}

/* One run that ends at once with exit `reason`; its description. */
static const struct avmm_final *end_with(struct avmm_vm *vm, int fd, uint32_t reason) {
    struct guest *g = &guests[0];
    g->limit = 1;
    g->last = reason;
    start(g);
    while (!sides[0].ended)
        serve(vm, fd, 20000);
    pthread_join(g->thread, NULL);
    const struct avmm_final *f = avmm_vcpu_final(g->vcpu);
    CHECK(f->kind == AVMM_END_EXIT && f->code == reason);
    return f;
}

static void phase_3(struct avmm_vm *vm, int fd) {
    const struct avmm_final *f = end_with(vm, fd, KVM_EXIT_UNKNOWN);
    CHECK(f->ndata == 1 && f->data[0] == 11);
    f = end_with(vm, fd, KVM_EXIT_FAIL_ENTRY);
    CHECK(f->detail == 22 && f->ndata == 1 && f->data[0] == 21);
    f = end_with(vm, fd, KVM_EXIT_DEBUG);
    CHECK(f->detail == 31 && f->ndata == 3 && f->data[0] == 32 && f->data[1] == 33 && f->data[2] == 34);
    f = end_with(vm, fd, KVM_EXIT_INTERNAL_ERROR);
    CHECK(f->detail == 41 && f->ndata == 16 && f->data[0] == 42 && f->data[15] == 57);
    f = end_with(vm, fd, KVM_EXIT_SYSTEM_EVENT);
    CHECK(f->detail == 61 && f->ndata == 1 && f->data[0] == 62);
    CHECK(end_with(vm, fd, KVM_EXIT_HLT)->ndata == 0);
    CHECK(end_with(vm, fd, KVM_EXIT_NOTIFY)->ndata == 0);
}

static void phase_4(struct avmm_vm *vm, int fd, uint64_t limit) {
    for (int i = 0; i < GUESTS; i++) {
        guests[i].takes_turns = true;
        guests[i].strict = false;
        guests[i].limit = limit;
        guests[i].pending = 0;
        guests[i].last = KVM_EXIT_SHUTDOWN;
        start(&guests[i]);
    }
    for (bool all = false; !all;) {
        if (rand() % 4 == 0)
            usleep(50); /* let the rings fill */
        serve(vm, fd, 20000);
        all = true;
        for (int i = 0; i < GUESTS; i++)
            all &= sides[i].ended;
    }
    for (int i = 0; i < GUESTS; i++)
        pthread_join(guests[i].thread, NULL);
    CHECK(turns_told == limit);
}

static void set(uint8_t *byte, uint8_t value) { __atomic_exchange_n(byte, value, __ATOMIC_SEQ_CST); } /* with its fence */

/* An odd byte is half of what the register shows, so whoever reads it must be told by the loop. It is whole again when everybody has
 * been, as a device's is by being read: who took it for whole before is through with that. */
static void phase_5(struct avmm_vm *vm, int fd, int rounds) {
    uint8_t *policy = policies[2], whole = *policy;
    for (int i = 0; i < GUESTS; i++) {
        guests[i].only_reads = true, guests[i].takes_turns = false, guests[i].limit = 0;
        start(&guests[i]);
    }
    while (rounds--) {
        set(policy, 0);
        set(&shadow_byte, 1);
        for (int i = 0; i < GUESTS; i++)
            for (int before = sides[i].asked; sides[i].asked == before;)
                serve(vm, fd, 20000);
        set(&shadow_byte, 2);
        set(policy, whole);
        for (int n = rand() % 64; n > 0; n--)
            avmm_relax();
    }
    for (int i = 0; i < GUESTS; i++)
        avmm_vcpu_stop(guests[i].vcpu);
    for (int i = 0; i < GUESTS; i++)
        pthread_join(guests[i].thread, NULL);
    while (!sides[0].ended || !sides[1].ended || !sides[2].ended)
        serve(vm, fd, 20000);
}

int main(int argc, char **argv) {
    uint64_t limit = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
    memset(policies[1], AVMM_POSTED_WRITE, 8);
    memset(policies[2], AVMM_SHADOW_READ, 8);
    int fd = eventfd(0, EFD_NONBLOCK);
    struct avmm_vm *vm = avmm_vm_new(fd, GUESTS, argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0);
    for (int i = 0; i < GUESTS; i++) {
        int error, run_fd = memfd_create("run", 0);
        CHECK(ftruncate(run_fd, RUN_SIZE) == 0);
        guests[i].fd = run_fd;
        guests[i].seed = i;
        guests[i].run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, run_fd, 0);
        guests[i].vcpu = avmm_vcpu_new(vm, i, run_fd, RUN_SIZE, guests[i].ring, 8, &error);
        CHECK(guests[i].vcpu);
    }
    publish(vm);
    phase_1(vm, fd, limit / 2);
    check_quiet(vm, fd);
    memset(policies[1], AVMM_POSTED_WRITE | AVMM_LAZY_WRITE, 8);
    dozes = true;
    phase_1(vm, fd, limit);
    phase_2(vm, fd, (int)(limit / 50));
    phase_3(vm, fd);
    phase_4(vm, fd, limit / 4);
    phase_5(vm, fd, (int)(limit / 8));
    for (int i = 0; i < GUESTS; i++)
        avmm_vcpu_free(guests[i].vcpu);
    for (int i = 0; i < GUESTS + 10; i++)
        publish(vm); /* frees all but as many as there is room for */
    avmm_vm_free(vm);
    puts("ok");
    return 0;
}
