/* The load of bench.network: a server and clients that cost as little as they can.
 *
 *   load serve PORT                     answer every request on TCP and UDP with its first byte
 *   load rate ADDRESS PORT N SECONDS    N connections at a time: connect, one byte there and back,
 *                                       close. Prints connections/s, p50 and p99 in µs, failures.
 *   load turn ADDRESS PORT N SECONDS    N connections that stay: one byte there and back. The same.
 *   load ask ADDRESS PORT N SECONDS HEX N questions at a time by UDP, of these bytes. The same.
 *   load first ADDRESS PORT SECONDS     connect every 2 ms until one byte has come back; prints
 *                                       the wall clock's seconds, or nothing if it never did.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, SPANS = 1 << 22, BIGGEST = 2048 };

static struct sockaddr_in target;
static int epoll, listener = -1, datagrams = -1;
static float *spans;
static long taken, failed;
static double *begun; /* by descriptor */

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void watch(int descriptor, int operation, unsigned events)
{
    struct epoll_event event = {.events = events, .data.fd = descriptor};
    must(epoll_ctl(epoll, operation, descriptor, &event) == 0, "epoll_ctl");
}

static int open_socket(int kind)
{
    int descriptor = socket(AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    /* no TIME_WAIT is left, or the ports would run out within seconds */
    struct linger none = {.l_onoff = 1, .l_linger = 0};
    must(descriptor >= 0, "socket");
    if (kind == SOCK_STREAM) {
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    return descriptor;
}

static void open_client(int kind)
{
    int descriptor = open_socket(kind);
    begun[descriptor] = now(CLOCK_MONOTONIC);
    int done = connect(descriptor, (struct sockaddr *)&target, sizeof target);
    if (done < 0 && errno != EINPROGRESS) {
        failed++;
        close(descriptor);
        usleep(1000);
        open_client(kind);
        return;
    }
    watch(descriptor, EPOLL_CTL_ADD, EPOLLOUT);
}

static void note(int descriptor)
{
    double time = now(CLOCK_MONOTONIC);
    if (taken < SPANS)
        spans[taken] = (time - begun[descriptor]) * 1e6;
    taken++;
    begun[descriptor] = time;
}

static int ascending(const void *a, const void *b)
{
    float first = *(const float *)a, second = *(const float *)b;
    return (first > second) - (first < second);
}

static void report(double seconds)
{
    long kept = taken < SPANS ? taken : SPANS;
    qsort(spans, kept, sizeof *spans, ascending);
    printf("%.1f %.1f %.1f %ld\n", taken / seconds, kept ? spans[kept / 2] : 0,
           kept ? spans[kept * 99 / 100] : 0, failed);
}

/* `stay`: a connection is used again, and a datagram socket always is. */
static void load(int kind, int parallel, double seconds, int stay, const char *request, int size)
{
    struct epoll_event events[EVENTS];
    char answer[BIGGEST];
    double start = now(CLOCK_MONOTONIC), end = start + seconds;
    spans = malloc(sizeof *spans * SPANS);
    begun = calloc(1 << 16, sizeof *begun);
    for (int count = 0; count < parallel; count++)
        open_client(kind);
    while (now(CLOCK_MONOTONIC) < end) {
        int found = epoll_wait(epoll, events, EVENTS, 100);
        for (int place = 0; place < found; place++) {
            int descriptor = events[place].data.fd, bad = events[place].events & (EPOLLERR | EPOLLHUP);
            if (!bad && events[place].events & EPOLLOUT) {
                if (stay || kind == SOCK_DGRAM)
                    begun[descriptor] = now(CLOCK_MONOTONIC);
                bad = write(descriptor, request, size) != size;
                if (!bad)
                    watch(descriptor, EPOLL_CTL_MOD, EPOLLIN);
            } else if (!bad) {
                bad = read(descriptor, answer, sizeof answer) <= 0;
                if (!bad) {
                    note(descriptor);
                    if (stay) {
                        bad = write(descriptor, request, size) != size;
                    } else {
                        close(descriptor);
                        open_client(kind);
                    }
                }
            }
            if (bad) {
                failed++;
                close(descriptor);
                open_client(kind);
            }
        }
    }
    report(now(CLOCK_MONOTONIC) - start);
}

static void answer_datagrams(void)
{
    struct sockaddr_in asker;
    char data[BIGGEST];
    for (;;) {
        socklen_t length = sizeof asker;
        ssize_t size = recvfrom(datagrams, data, sizeof data, 0, (struct sockaddr *)&asker, &length);
        if (size < 0)
            return;
        sendto(datagrams, data, size ? 1 : 0, 0, (struct sockaddr *)&asker, length);
    }
}

static void serve(int port)
{
    struct epoll_event events[EVENTS];
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    char data[BIGGEST];
    int one = 1;
    listener = open_socket(SOCK_STREAM);
    datagrams = open_socket(SOCK_DGRAM);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    must(bind(listener, (struct sockaddr *)&any, sizeof any) == 0, "bind");
    must(bind(datagrams, (struct sockaddr *)&any, sizeof any) == 0, "bind");
    must(listen(listener, 4096) == 0, "listen");
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(datagrams, EPOLL_CTL_ADD, EPOLLIN);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int found = epoll_wait(epoll, events, EVENTS, -1);
        for (int place = 0; place < found; place++) {
            int descriptor = events[place].data.fd;
            if (descriptor == datagrams) {
                answer_datagrams();
            } else if (descriptor == listener) {
                int fresh = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fresh >= 0)
                    watch(fresh, EPOLL_CTL_ADD, EPOLLIN);
            } else if (read(descriptor, data, sizeof data) <= 0 || write(descriptor, data, 1) != 1) {
                close(descriptor);
            }
        }
    }
}

static void first(double seconds)
{
    double end = now(CLOCK_MONOTONIC) + seconds;
    struct timeval patience = {.tv_sec = 1};
    while (now(CLOCK_MONOTONIC) < end) {
        char byte = 'a';
        int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        int good = connect(descriptor, (struct sockaddr *)&target, sizeof target) == 0 &&
                   write(descriptor, &byte, 1) == 1 && read(descriptor, &byte, 1) == 1;
        close(descriptor);
        if (good) {
            printf("%.6f\n", now(CLOCK_REALTIME));
            return;
        }
        usleep(2000);
    }
}

static int unhex(const char *text, char *bytes)
{
    int size = 0;
    for (; text[2 * size] && text[2 * size + 1] && size < BIGGEST; size++) {
        unsigned value;
        sscanf(text + 2 * size, "%2x", &value);
        bytes[size] = value;
    }
    return size;
}

int main(int count, char **words)
{
    char request[BIGGEST] = "?";
    int size = 1;
    must((epoll = epoll_create1(EPOLL_CLOEXEC)) >= 0, "epoll_create1");
    if (count == 3 && !strcmp(words[1], "serve")) {
        serve(atoi(words[2]));
        return 0;
    }
    if (count < 5) {
        fprintf(stderr, "usage: see the source\n");
        return 2;
    }
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(words[3]));
    must(inet_pton(AF_INET, words[2], &target.sin_addr) == 1, words[2]);
    if (!strcmp(words[1], "first")) {
        first(atof(words[4]));
    } else if (count >= 6) {
        int asks = !strcmp(words[1], "ask");
        if (asks && count == 7)
            size = unhex(words[6], request);
        load(asks ? SOCK_DGRAM : SOCK_STREAM, atoi(words[4]), atof(words[5]),
             asks || !strcmp(words[1], "turn"), request, size);
    }
    return 0;
}
