/* What the processor says of itself. */
#ifndef AIOVMM_PROCESSOR_H
#define AIOVMM_PROCESSOR_H

/* Whether it is QEMU's emulation in software (TCG), by the hypervisor's signature. */
int avmm_is_tcg(void);

#endif
