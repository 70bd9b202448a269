int avmm_is_tcg(void);
