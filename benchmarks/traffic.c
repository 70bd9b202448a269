/* Both ends of a measured connection; static, since guests have no libraries. Servers run on the host, clients in the guest.
 *
 *   traffic serve ADDRESS                 until killed
 *   traffic send|receive ADDRESS SECONDS  a stream: MiB a second that the receiver got
 *   traffic ping ADDRESS COUNT            round trips of one byte: microseconds, median
 *   traffic out|in udp:HOST:PORT SECONDS  small datagrams: how many a second the receiver got
 *   traffic print FILE BYTES              dots to a terminal, raw
 * ADDRESS: tcp:HOST:PORT, udp:HOST:PORT, vsock:CID:PORT or unix:PATH. A client's last line is `result NUMBER`.
 *
 * The first byte of a stream says what the server is to do: drain it and answer with the count, be a source, or echo. A datagram
 * is a dot, which is counted; `?` asks for the count, which begins anew; `g` and a number asks for dots for so many milliseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { DRAIN = 'd', SOURCE = 's', REPEAT = 'e', DATAGRAM = 18 }; /* 18 bytes make the smallest Ethernet frame */

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_vm vm;
    struct sockaddr_un un;
};

static char buffer[128 << 10];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int open_socket(const char *text, union address *a, socklen_t *size) {
    char kind[8] = "", rest[100] = "", *colon;
    if (sscanf(text, "%7[a-z]:%99s", kind, rest) != 2)
        errx(2, "%s is no address", text);
    memset(a, 0, sizeof *a);
    if (!strcmp(kind, "unix")) {
        a->un.sun_family = AF_UNIX;
        memcpy(a->un.sun_path, rest, sizeof rest);
        *size = sizeof a->un;
    } else if (!(colon = strchr(rest, ':'))) {
        errx(2, "%s has no port", text);
    } else if (!strcmp(kind, "vsock")) {
        *colon = 0;
        a->vm = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = strtol(rest, NULL, 0), .svm_port = atoi(colon + 1)};
        *size = sizeof a->vm;
    } else {
        *colon = 0;
        a->in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
        inet_pton(AF_INET, rest, &a->in.sin_addr);
        *size = sizeof a->in;
    }
    int fd = socket(a->any.sa_family, strcmp(kind, "udp") ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (fd < 0)
        err(1, "%s", text);
    return fd;
}

static void send_all(int fd, const void *data, size_t n) {
    for (const char *p = data; n;) {
        ssize_t sent = write(fd, p, n);
        if (sent < 0)
            err(1, "write");
        p += sent;
        n -= sent;
    }
}

static uint64_t drain(int fd, double until) {
    uint64_t total = 0;
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0) {
        total += n;
        if (until && now() >= until)
            break;
    }
    return total;
}

/* ---- the server ---- */

static void serve_stream(int fd) {
    char role;
    ssize_t n;
    if (read(fd, &role, 1) != 1)
        return;
    if (role == DRAIN) {
        uint64_t total = drain(fd, 0);
        send_all(fd, &total, sizeof total);
    } else if (role == SOURCE) {
        while (write(fd, buffer, sizeof buffer) > 0)
            ;
    } else {
        while ((n = read(fd, buffer, sizeof buffer)) > 0)
            send_all(fd, buffer, n);
    }
}

static void flood(int fd, const union address *to, double seconds) {
    double end = now() + seconds;
    while (now() < end)
        for (int i = 0; i < 16; i++)
            sendto(fd, ".................", DATAGRAM, 0, to ? &to->any : NULL, to ? sizeof to->in : 0);
}

static void serve_datagrams(int fd) {
    uint64_t count = 0;
    for (;;) {
        union address from;
        socklen_t size = sizeof from;
        ssize_t n = recvfrom(fd, buffer, sizeof buffer - 1, 0, &from.any, &size);
        if (n <= 0)
            continue;
        buffer[n] = 0;
        if (buffer[0] == '.')
            count++;
        else if (buffer[0] == 'g')
            flood(fd, &from, atoi(buffer + 1) / 1e3);
        else {
            sendto(fd, &count, sizeof count, 0, &from.any, size);
            count = 0;
        }
    }
}

static void serve(const char *text) {
    union address a;
    socklen_t size;
    int fd = open_socket(text, &a, &size), on = 1, type;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, &a.any, size) < 0)
        err(1, "%s", text);
    size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (type == SOCK_DGRAM)
        serve_datagrams(fd);
    if (listen(fd, 16) < 0)
        err(1, "%s", text);
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client < 0)
            err(1, "accept");
        if (fork() == 0) {
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            serve_stream(client);
            exit(0);
        }
        close(client);
    }
}

/* ---- clients ---- */

static double send_for(int fd, double seconds) {
    double start = now();
    uint64_t total = 0;
    send_all(fd, &(char){DRAIN}, 1);
    while (now() < start + seconds)
        send_all(fd, buffer, sizeof buffer);
    shutdown(fd, SHUT_WR);
    if (recv(fd, &total, sizeof total, MSG_WAITALL) != sizeof total)
        err(1, "no answer");
    return total / (now() - start) / (1 << 20);
}

static double receive_for(int fd, double seconds) {
    double start = now();
    send_all(fd, &(char){SOURCE}, 1);
    uint64_t total = drain(fd, start + seconds);
    return total / (now() - start) / (1 << 20);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double ping(int fd, int count) {
    double *took = calloc(count, sizeof *took);
    send_all(fd, &(char){REPEAT}, 1);
    for (int i = 0; i < count; i++) {
        double start = now();
        send_all(fd, "x", 1);
        if (read(fd, buffer, 1) != 1)
            err(1, "no echo");
        took[i] = now() - start;
    }
    qsort(took, count, sizeof *took, compare);
    return took[count / 2] * 1e6;
}

/* The count so far, which begins anew. A lost question or answer is asked again. */
static uint64_t ask_count(int fd) {
    uint64_t count;
    for (int tries = 0; tries < 10; tries++) {
        send(fd, "?", 1, 0);
        if (recv(fd, &count, sizeof count, 0) == sizeof count)
            return count;
    }
    errx(1, "no count");
}

static double datagrams_out(int fd, double seconds) {
    ask_count(fd);
    double start = now();
    flood(fd, NULL, seconds);
    uint64_t count = ask_count(fd);
    return count / (now() - start);
}

static double datagrams_in(int fd, double seconds) {
    uint64_t count = 0;
    sprintf(buffer, "g%d", (int)(seconds * 1000));
    send(fd, buffer, strlen(buffer), 0);
    double start = 0, last = 0;
    while (recv(fd, buffer, sizeof buffer, 0) > 0) { /* until none comes for a while */
        last = now();
        if (!count++)
            start = last;
    }
    return last > start ? (count - 1) / (last - start) : 0;
}

static void print_dots(const char *path, size_t left) {
    int fd = open(path, O_WRONLY | O_NOCTTY);
    struct termios t;
    if (fd < 0 || tcgetattr(fd, &t) < 0)
        err(1, "%s", path);
    struct termios raw = t;
    cfmakeraw(&raw);
    tcsetattr(fd, TCSANOW, &raw);
    memset(buffer, '.', sizeof buffer);
    while (left) {
        size_t part = left < sizeof buffer ? left : sizeof buffer;
        send_all(fd, buffer, part);
        left -= part;
    }
    tcdrain(fd);
    tcsetattr(fd, TCSANOW, &t);
}

static double client(const char *what, const char *address, double amount) {
    union address a;
    socklen_t size;
    int fd = open_socket(address, &a, &size), on = 1;
    if (connect(fd, &a.any, size) < 0)
        err(1, "%s", address);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!strcmp(what, "send"))
        return send_for(fd, amount);
    if (!strcmp(what, "receive"))
        return receive_for(fd, amount);
    if (!strcmp(what, "ping"))
        return ping(fd, amount);
    struct timeval limit = {.tv_usec = 500000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return !strcmp(what, "out") ? datagrams_out(fd, amount) : datagrams_in(fd, amount);
}

int main(int argc, char **argv) {
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(argv[2]);
    else if (argc == 4 && !strcmp(argv[1], "print"))
        print_dots(argv[2], strtoull(argv[3], NULL, 0));
    else if (argc == 4)
        printf("result %.3f\n", client(argv[1], argv[2], atof(argv[3])));
    else
        return 2;
    return 0;
}
