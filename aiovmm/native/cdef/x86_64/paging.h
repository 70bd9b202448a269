struct avmm_paging {
    uint64_t cr0, cr3, cr4, efer;
};
struct avmm_paging avmm_vcpu_paging(const struct avmm_vcpu *v);
