#define AVMM_SHADOW_READ 1
#define AVMM_NOTE_READ 2
#define AVMM_POSTED_WRITE 4
#define AVMM_LATCH_WRITE 8
#define AVMM_IGNORE_WRITE 16
#define AVMM_POSTED_DWORD 32
#define AVMM_LAZY_WRITE 64
#define AVMM_DROP_SAME 128
#define AVMM_COUNT_SYNC 0
#define AVMM_COUNT_POSTED 1
#define AVMM_COUNT_SHADOW 2
#define AVMM_COUNT_IGNORED 3
#define AVMM_COUNTS 4
struct avmm_range {
    uint64_t base;
    uint64_t size;
    const uint8_t *policy;
    uint8_t *shadow;
    uint64_t *counts;
    uint64_t ecam;
};
struct avmm_table {
    uint32_t count[2];
    struct avmm_range *ranges[2];
};
#define AVMM_PIO_READ 0
#define AVMM_PIO_WRITE 1
#define AVMM_MMIO_READ 2
#define AVMM_MMIO_WRITE 3
#define AVMM_EOI 4
#define AVMM_PARKED 5
#define AVMM_ENDED 6
#define AVMM_LOST 7
#define AVMM_NO_SYNDROME 8
struct avmm_event {
    uint64_t address;
    uint64_t data;
    uint32_t count;
    uint32_t seq;
    uint16_t vcpu;
    uint8_t kind;
    uint8_t size;
    uint32_t sync;
};
#define AVMM_END_STOP 0
#define AVMM_END_ERRNO 1
#define AVMM_END_EXIT 2
struct avmm_final {
    uint32_t kind;
    uint32_t code;
    uint32_t detail;
    uint32_t ndata;
    uint64_t data[16];
};
struct avmm_counters {
    uint64_t exits;
    uint64_t sync;
    uint64_t posted;
    uint64_t shadow;
    uint64_t ignored;
    uint64_t missed;
    uint64_t full;
    uint64_t bus_locks;
    uint64_t notifies;
};
struct avmm_vm;
struct avmm_vcpu;
struct avmm_vm *avmm_vm_new(int eventfd, uint32_t max_vcpus, uint32_t look_ns);
void avmm_vm_free(struct avmm_vm *vm);
uint32_t *avmm_vm_lost(struct avmm_vm *vm);
struct avmm_table *avmm_vm_publish(struct avmm_vm *vm, struct avmm_table *table);
int avmm_table_used(struct avmm_vm *vm, const struct avmm_table *table);
uint32_t avmm_vm_drain(struct avmm_vm *vm, struct avmm_event *out, uint32_t max, uint8_t *bytes, uint32_t nbytes);
int avmm_vm_linger(struct avmm_vm *vm);
void avmm_vm_doze(struct avmm_vm *vm);
enum { AVMM_ENTRY_SIZE = ... };
struct avmm_vcpu *avmm_vcpu_new(struct avmm_vm *vm, uint32_t index, int fd, size_t run_size, void *ring, uint32_t entries,
                                int *error);
void avmm_vcpu_free(struct avmm_vcpu *v);
void avmm_name_thread(const char *name);
int avmm_vcpu_start(struct avmm_vcpu *v, const char *name, int nice, int core);
int avmm_vcpu_runs(struct avmm_vcpu *v);
int avmm_vcpu_tid(struct avmm_vcpu *v);
int avmm_vcpu_run_on(struct avmm_vcpu *v, const uint8_t *cpus, size_t size);
int avmm_vcpu_join(struct avmm_vcpu *v, int64_t timeout_ns);
int avmm_has_core_scheduling(void);
int avmm_vcpu_core(const struct avmm_vcpu *v);
void avmm_vcpu_stop(struct avmm_vcpu *v);
void avmm_vcpu_pause(struct avmm_vcpu *v, uint32_t generation);
void avmm_vcpu_resume(struct avmm_vcpu *v);
int avmm_vcpu_complete(struct avmm_vcpu *v, uint32_t seq, uint64_t data);
const struct avmm_final *avmm_vcpu_final(const struct avmm_vcpu *v);
const struct avmm_counters *avmm_vcpu_counters(const struct avmm_vcpu *v);
