#include "text.h"

#ifndef HOSTED /* the compiler itself asks for these four */
void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    return memmove(to, from, size);
}

void *memmove(void *to, const void *from, size_t size)
{
    uint8_t *t = to;
    const uint8_t *f = from;

    if (t <= f || t >= f + size) {
        for (; size >= 8; size -= 8, t += 8, f += 8) {
            uint64_t word;
            __builtin_memcpy(&word, f, 8); /* one unaligned load and store */
            __builtin_memcpy(t, &word, 8);
        }
        while (size--)
            *t++ = *f++;
    } else {
        while (size--)
            t[size] = f[size];
    }
    return to;
}

void *memset(void *at, int value, size_t size)
{
    for (uint8_t *p = at; size--; p++)
        *p = (uint8_t)value;
    return at;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *p = a, *q = b;

    for (; size--; p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

size_t strlen(const char *text)
{
    size_t size = 0;

    while (text[size])
        size++;
    return size;
}
#endif

int text_is(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return *a == *b;
}

int64_t number_at(const char **at)
{
    int64_t value = 0;
    const char *p = *at;

    if (*p < '0' || *p > '9')
        return -1;
    for (; *p >= '0' && *p <= '9'; p++) {
        value = value * 10 + (*p - '0');
        if (value > UINT32_MAX)
            return -1;
    }
    *at = p;
    return value;
}

int64_t number_of(const char *text)
{
    int64_t value = number_at(&text);

    return *text ? -1 : value;
}

size_t number_put(char *to, uint64_t value)
{
    char digits[20];
    size_t count = 0, size;

    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    size = count;
    while (count)
        *to++ = digits[--count];
    *to = 0;
    return size;
}

int text_join(char *to, size_t size, const char *a, const char *b)
{
    size_t first = strlen(a), second = strlen(b);

    if (first + second + 1 > size) {
        to[0] = 0;
        return 0;
    }
    memcpy(to, a, first);
    memcpy(to + first, b, second + 1);
    return 1;
}
