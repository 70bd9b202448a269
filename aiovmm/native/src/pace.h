/* How many exits a second a VM may make, and how many of those that hold up the whole host: its vCPU threads stand still until they may go on. */
#ifndef AIOVMM_PACE_H
#define AIOVMM_PACE_H
#include <stdint.h>

struct avmm_vm;

enum avmm_paced { AVMM_PACE_EXITS, AVMM_PACE_HARM, AVMM_PACES };

/* From now on at most one exit of this `kind` in `interval` nanoseconds, of all vCPUs together, and so many more at once as `burst` nanoseconds
 * have room for. 0: as many as it likes, and who stands still goes on. Of the event loop's thread. */
void avmm_vm_pace(struct avmm_vm *vm, enum avmm_paced kind, uint64_t interval, uint64_t burst);

#endif
