/* The system counter, which all clocks of a guest are made of. */
#ifndef AVMM_COUNTER_H
#define AVMM_COUNTER_H

#include <stdint.h>

/* How often it counts in a second, on this host and so for its guests. */
uint64_t avmm_counter_hz(void);

#endif
