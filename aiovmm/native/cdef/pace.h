void avmm_vm_pace(struct avmm_vm *vm, uint64_t interval, uint64_t burst);
