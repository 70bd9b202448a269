enum avmm_paced { AVMM_PACE_EXITS, AVMM_PACE_HARM, AVMM_PACES };
void avmm_vm_pace(struct avmm_vm *vm, enum avmm_paced kind, uint64_t interval, uint64_t burst);
