/* What the host asks for with START: the texts of a program, its surroundings, and what becomes of its streams. */
#include "agent.h"

static const char *text_next(const uint8_t **at, const uint8_t *end)
{
    const uint8_t *start = *at, *p = start;

    while (p < end && *p)
        p++;
    if (p == end)
        return NULL;
    *at = p + 1;
    return (const char *)start;
}

int request_parse(struct request *request, const uint8_t *data, size_t size, char **pointers, size_t most)
{
    const uint8_t *at = data + START_HEADER, *end = data + size;

    if (size < START_HEADER)
        return -EINVAL;
    request->flags = get32(data);
    memcpy(request->modes, data + 4, 3);
    request->rows = get16(data + 8);
    request->columns = get16(data + 10);
    request->credit[0] = get32(data + 12);
    request->credit[1] = get32(data + 16);
    request->argc = get16(data + 20);
    request->envc = get16(data + 22);
    request->limits = get16(data + 24);
    request->limit = at;
    if ((size_t)(end - at) < (size_t)request->limits * START_LIMIT || !request->argc)
        return -EINVAL;
    at += (size_t)request->limits * START_LIMIT;
    if (request->argc + request->envc + 2u > most || request->envc > ENVC_MAX)
        return -E2BIG;
    request->directory = text_next(&at, end);
    request->user = text_next(&at, end);
    if (!request->directory || !request->user)
        return -EINVAL;
    request->argv = pointers;
    for (size_t i = 0; i < request->argc; i++)
        if (!(*pointers++ = (char *)text_next(&at, end)))
            return -EINVAL;
    *pointers++ = NULL;
    request->env = pointers;
    for (size_t i = 0; i < request->envc; i++)
        if (!(*pointers++ = (char *)text_next(&at, end)))
            return -EINVAL;
    *pointers = NULL;
    return at == end ? 0 : -EINVAL;
}
