int avmm_cpuid(uint32_t leaf, uint32_t out[4]);
int avmm_request_guest_state(unsigned feature);
