struct avmm_allowance {
    int64_t ops;
    int64_t bytes;
};
