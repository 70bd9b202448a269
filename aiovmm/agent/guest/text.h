/* Memory, text and numbers: what a C library would bring. */
#ifndef AGENT_TEXT_H
#define AGENT_TEXT_H

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *at, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);

int text_is(const char *a, const char *b);
/* The number at *at, moving *at behind it; -1 if there is none, or it does not fit 32 bits. */
int64_t number_at(const char **at);
/* All of `text` as a number, or -1. */
int64_t number_of(const char *text);
/* `value` in decimal at `to`, with a NUL; returns its length. `to` has room for 21 bytes. */
size_t number_put(char *to, uint64_t value);
/* "a" followed by "b", cut to what `size` bytes hold with the NUL; 0 if it had to be cut. */
int text_join(char *to, size_t size, const char *a, const char *b);

static inline uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static inline uint32_t get32(const uint8_t *at)
{
    return get16(at) | (uint32_t)get16(at + 2) << 16;
}

static inline uint64_t get64(const uint8_t *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

static inline void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static inline void put32(uint8_t *at, uint32_t value)
{
    put16(at, value);
    put16(at + 2, value >> 16);
}

static inline void put64(uint8_t *at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

#endif
