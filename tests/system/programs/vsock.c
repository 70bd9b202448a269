/* A guest's end of vsock connections, for tests and benchmarks; static, since the guest has no libraries.
 *
 *   vsock listen PORT ROLE [SIZE]          serve connections, a process each, until killed
 *   vsock connect CID PORT ROLE [SIZE]     one connection
 *   vsock many CID PORT COUNT              COUNT connections at once; each then sends its number to an echo
 * Roles: echo; sink (count and checksum all, send the result back); source (send SIZE bytes, half-close, show the answer);
 * ping (SIZE round trips of one byte; the other side is an echo); drain and flood (sink and source without a checksum). */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[256 << 10];
static uint32_t table[256];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint32_t crc(uint32_t c, const void *data, size_t n) { /* CRC-32 of zlib */
    const uint8_t *p = data;
    for (c = ~c; n--; p++)
        c = table[(c ^ *p) & 0xff] ^ c >> 8;
    return ~c;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void send_all(int fd, const char *data, size_t n) {
    while (n) {
        ssize_t sent = write(fd, data, n);
        if (sent < 0)
            die("write");
        data += sent;
        n -= sent;
    }
}

static void echo(int fd) {
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        send_all(fd, buffer, n);
    if (n < 0)
        die("read");
}

static void sink(int fd, int check) {
    uint64_t total = 0;
    uint32_t sum = 0;
    char line[64];
    ssize_t n;
    double start = now();
    while ((n = read(fd, buffer, sizeof buffer)) > 0) {
        if (check)
            sum = crc(sum, buffer, n);
        total += n;
    }
    if (n < 0)
        die("read");
    snprintf(line, sizeof line, "%llu %08x %.3f\n", (unsigned long long)total, sum, now() - start);
    send_all(fd, line, strlen(line));
}

static void source(int fd, uint64_t size, int check) {
    uint64_t x = 88172645463325252ull, *words = (uint64_t *)buffer;
    uint32_t sum = 0;
    double start = now();
    ssize_t n;
    for (size_t i = 0; i < sizeof buffer / 8; i++)
        words[i] = x = x * 6364136223846793005ull + 1442695040888963407ull;
    for (uint64_t left = size; left;) {
        size_t part = left < sizeof buffer ? left : sizeof buffer;
        words[0] = left; /* no two blocks are the same */
        if (check)
            sum = crc(sum, buffer, part);
        send_all(fd, buffer, part);
        left -= part;
    }
    if (shutdown(fd, SHUT_WR) < 0)
        die("shutdown");
    printf("%llu %08x ", (unsigned long long)size, sum);
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, n, stdout);
    if (n < 0) {
        printf("\n"); /* a line of its own for what comes next, however much of the answer was there */
        die("read");
    }
    printf(" in %.3f\n", now() - start);
}

static void ping(int fd, long count) {
    double start = now();
    for (long i = 0; i < count; i++) {
        send_all(fd, "x", 1);
        if (read(fd, buffer, 1) != 1)
            die("read");
    }
    printf("%.1f us\n", (now() - start) / count * 1e6);
}

static void run(int fd, const char *role, uint64_t size) {
    if (!strcmp(role, "echo"))
        echo(fd);
    else if (!strcmp(role, "sink") || !strcmp(role, "drain"))
        sink(fd, role[0] == 's');
    else if (!strcmp(role, "source") || !strcmp(role, "flood"))
        source(fd, size, role[0] == 's');
    else if (!strcmp(role, "ping"))
        ping(fd, size);
    else
        exit(2);
    close(fd);
}

static int dial(unsigned cid, unsigned port) {
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    if (connect(fd, (void *)&to, sizeof to) < 0)
        die("connect");
    return fd;
}

static void serve(unsigned port, const char *role, uint64_t size) {
    struct sockaddr_vm at = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (void *)&at, sizeof at) < 0 || listen(fd, 1024) < 0)
        die("listen");
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client < 0)
            die("accept");
        if (fork() == 0) {
            close(fd);
            run(client, role, size);
            exit(0);
        }
        close(client);
    }
}

static void many(unsigned cid, unsigned port, int count) {
    int *fds = calloc(count, sizeof *fds), number;
    for (int i = 0; i < count; i++)
        fds[i] = dial(cid, port);
    for (int i = 0; i < count; i++)
        send_all(fds[i], (char *)&i, sizeof i);
    for (int i = 0; i < count; i++)
        if (recv(fds[i], &number, sizeof number, MSG_WAITALL) != sizeof number || number != i)
            die("answer");
    printf("%d connections\n", count);
}

int main(int argc, char **argv) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] & 1 ? 0xedb88320u ^ table[i] >> 1 : table[i] >> 1;
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc >= 4 && !strcmp(argv[1], "listen"))
        serve(atoi(argv[2]), argv[3], argc > 4 ? strtoull(argv[4], NULL, 0) : 0);
    else if (argc >= 5 && !strcmp(argv[1], "connect"))
        run(dial(atoi(argv[2]), atoi(argv[3])), argv[4], argc > 5 ? strtoull(argv[5], NULL, 0) : 0);
    else if (argc == 5 && !strcmp(argv[1], "many"))
        many(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
    else
        return 2;
    return 0;
}
