uint64_t avmm_counter_hz(void);
