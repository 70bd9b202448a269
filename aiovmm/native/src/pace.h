/* How many exits a second a VM may make: its vCPU threads stand still until they may go on. */
#ifndef AIOVMM_PACE_H
#define AIOVMM_PACE_H
#include <stdint.h>

struct avmm_vm;

/* From now on at most one exit in `interval` nanoseconds, of all vCPUs together, and so many more at once as `burst` nanoseconds
 * have room for. 0: as many as it likes, and who stands still goes on. Of the event loop's thread. */
void avmm_vm_pace(struct avmm_vm *vm, uint64_t interval, uint64_t burst);

#endif
