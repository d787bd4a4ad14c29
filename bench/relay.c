/* Both ends of a relay, for measuring what is between them: an engine that answers at once, and clients of it.
 *
 * relay serve PORT            a body of ?bytes=N, or with ?chunks=N&every=MICROSECONDS a chunked stream of events; every event
 *                             holds the time at which it was sent. every=0: as fast as they are taken.
 * relay ask PORT CLIENTS SECONDS POSTED BYTES [TARGET]   each client asks again when it has its answer; prints requests and latencies.
 * relay listen PORT CLIENTS CHUNKS EVERY    each client asks the model "stream" for one stream and reads it; prints events and how late they came.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096, READ = 1 << 18 };

struct peer {
    int fd, expected;
    long left, every, bytes;           /* of a stream: events to come, microseconds between them; of an answer: what is unsent */
    int64_t next, began;
    char in[1 << 17];
    size_t have;
    long body_left;
    int in_body, chunked, seen_end;
    char carry[64];
    size_t carried;
};

static struct peer *peers[MOST];
static char scratch[READ], filler[1 << 20];
static double *late;
static size_t lates, room, warm_up;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void keep(double value)
{
    if (lates == room && !(late = realloc(late, (room = room ? 2 * room : 1 << 16) * sizeof *late)))
        exit(3);
    late[lates++] = value;
}

static int smaller(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void report(const char *what, double seconds)
{
    qsort(late, lates, sizeof *late, smaller);
    if (!lates)
        exit(4);
    printf("{\"%s\": %zu, \"warm_up\": %zu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", what, lates, warm_up, seconds,
           late[lates / 2] / 1e3, late[lates * 99 / 100] / 1e3);
}

static int tcp(int port, int serving)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (serving ? bind(fd, (void *)&a, sizeof a) || listen(fd, 1024) : connect(fd, (void *)&a, sizeof a)) {
        perror(serving ? "bind" : "connect");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static long number(const char *text, const char *name, long otherwise)
{
    const char *found = strstr(text, name);
    return found ? atol(found + strlen(name)) : otherwise;
}

/* Serving ------------------------------------------------------------------------------------------------------------ */

static int watch(int epoll, struct peer *p, int events, int how)
{
    struct epoll_event e = {.events = (uint32_t)events, .data.ptr = p};
    return epoll_ctl(epoll, how, p->fd, &e);
}

static void answer(int epoll, struct peer *p)
{
    while (p->bytes > 0) {
        ssize_t n = send(p->fd, filler, p->bytes < (long)sizeof filler ? (size_t)p->bytes : sizeof filler, MSG_NOSIGNAL);
        if (n < 0) {
            watch(epoll, p, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        p->bytes -= n;
    }
    int64_t t = now();
    while (p->left > 0 && (!p->every || p->next <= t)) {
        char event[256], chunk[300];
        int n = snprintf(event, sizeof event, "data: {\"t\": %020lld, \"choices\": [{\"delta\": {\"content\": \" word\"}}]}\n\n", (long long)now());
        n = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n%s", n, event, p->left == 1 ? "0\r\n\r\n" : "");
        ssize_t sent = send(p->fd, chunk, (size_t)n, MSG_NOSIGNAL);
        if (sent < 0) {
            watch(epoll, p, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        while (sent < n) {             /* A chunk is never left half sent: it is small, and this is only a bench. */
            ssize_t more = send(p->fd, chunk + sent, (size_t)(n - sent), MSG_NOSIGNAL);
            if (more > 0)
                sent += more;
            else if (errno != EAGAIN)
                return;
        }
        p->left--;
        p->next += p->every * 1000;
    }
    watch(epoll, p, EPOLLIN, EPOLL_CTL_MOD);
}

static void asked(int epoll, struct peer *p)
{
    char head[256], *end;
    while ((end = memmem(p->in, p->have, "\r\n\r\n", 4))) {
        *end = 0;
        char *said = strcasestr(p->in, "content-length: ");
        size_t whole = (size_t)(end - p->in) + 4 + (said ? (size_t)atol(said + 16) : 0);
        if (whole > p->have) {
            *end = '\r';
            return;
        }
        long chunks = number(p->in, "chunks=", 0), bytes = number(p->in, "bytes=", 200);
        if (chunks) {
            p->left = chunks;
            p->every = number(p->in, "every=", 0);
            p->next = now();
            int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
            if (send(p->fd, head, (size_t)n, MSG_NOSIGNAL) != n)
                return;
        } else {
            int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %ld\r\n\r\n", bytes);
            memcpy(scratch, head, (size_t)n);
            long first = bytes < READ - 512 ? bytes : READ - 512;
            memcpy(scratch + n, filler, (size_t)first);
            ssize_t sent = send(p->fd, scratch, (size_t)(n + first), MSG_NOSIGNAL);
            if (sent < n)
                return;
            p->bytes = bytes - (sent - n);
        }
        memmove(p->in, p->in + whole, p->have -= whole);
        answer(epoll, p);
    }
}

static _Noreturn void serve(int port)
{
    int server = tcp(port, 1), epoll = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, server, &e);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int paced = 0;
        for (int i = 0; i < MOST; i++)
            paced |= peers[i] && peers[i]->left > 0 && peers[i]->every;
        int n = epoll_pwait2(epoll, events, 256, paced ? &(struct timespec){.tv_nsec = 100000} : NULL, NULL);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) {
                int fd = accept4(server, NULL, NULL, SOCK_NONBLOCK), one = 1;
                if (fd < 0 || fd >= MOST)
                    continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                p = peers[fd] = calloc(1, sizeof *p);
                p->fd = fd;
                watch(epoll, p, EPOLLIN, EPOLL_CTL_ADD);
                continue;
            }
            if (events[i].events & EPOLLOUT)
                answer(epoll, p);
            if (!(events[i].events & EPOLLIN))
                continue;
            ssize_t got = recv(p->fd, p->in + p->have, sizeof p->in - p->have, 0);
            if (got > 0) {
                p->have += (size_t)got;
                asked(epoll, p);
            } else if (got == 0 || errno != EAGAIN) {
                close(p->fd);
                peers[p->fd] = NULL;
                free(p);
            }
        }
        for (int i = 0; paced && i < MOST; i++)
            if (peers[i] && peers[i]->left > 0 && peers[i]->every)
                answer(epoll, peers[i]);
    }
}

/* Asking ------------------------------------------------------------------------------------------------------------- */

static struct peer *join(int epoll, int port)
{
    struct peer *p = calloc(1, sizeof *p);
    p->fd = tcp(port, 0);
    watch(epoll, p, EPOLLIN, EPOLL_CTL_ADD);
    return p;
}

static void ask(struct peer *p, const char *request, size_t size)
{
    p->began = now();
    p->have = 0;
    p->in_body = 0;
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(p->fd, request + sent, size - sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            exit(5);
        sent += n > 0 ? (size_t)n : 0;
    }
}

/* 1 when the answer is complete. */
static int answered(struct peer *p)
{
    for (;;) {
        ssize_t n = recv(p->fd, p->in_body ? scratch : p->in + p->have, p->in_body ? READ : sizeof p->in - p->have, 0);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0) {
            fprintf(stderr, "the connection ended in the middle of an answer\n");
            exit(6);
        }
        if (p->in_body) {
            p->body_left -= n;
        } else {
            p->have += (size_t)n;
            char *end = memmem(p->in, p->have, "\r\n\r\n", 4);
            if (!end)
                continue;
            *end = 0;
            if (!strstr(p->in, " 200 ")) {
                fprintf(stderr, "answered %s\n", p->in);
                exit(7);
            }
            char *said = strcasestr(p->in, "content-length: ");
            p->body_left = (said ? atol(said + 16) : 0) - (long)(p->have - (size_t)(end - p->in) - 4);
            p->in_body = 1;
        }
        if (p->body_left <= 0)
            return 1;
    }
}

static int ask_all(int port, int clients, double seconds, long posted, long bytes, const char *target)
{
    int epoll = epoll_create1(0);
    char *request = calloc(1, (size_t)posted + 1024), usual[64];
    snprintf(usual, sizeof usual, "/v1/chat/completions?bytes=%ld", bytes);
    size_t size = (size_t)snprintf(request, 1024,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: bench\r\nAccept: application/json\r\n"
                                   "Content-Type: application/json\r\nContent-Length: %ld\r\n\r\n", target ? target : usual, port, posted);
    memset(request + size, 'x', (size_t)posted);
    static const char begin_of_body[] = "{\"model\":\"bench\",\"prompt\":\"", end_of_body[] = "\"}";
    if (posted >= (long)(sizeof begin_of_body + sizeof end_of_body)) {
        memcpy(request + size, begin_of_body, sizeof begin_of_body - 1);
        memcpy(request + size + posted - 2, end_of_body, 2);
    }
    size += (size_t)posted;
    for (int i = 0; i < clients; i++)
        ask(join(epoll, port), request, size);
    int64_t warm = now() + 200000000LL, begin = 0, end = warm + (int64_t)(seconds * 1e9), t = 0;
    struct epoll_event events[256];
    while (t < end) {
        int n = epoll_wait(epoll, events, 256, 1000);
        if (n <= 0)
            exit(8);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!answered(p))
                continue;
            t = now();
            if (t >= warm) {
                begin = begin ? begin : t;
                keep((double)(t - p->began));
            } else {
                warm_up++;
            }
            ask(p, request, size);
        }
    }
    report("requests", (double)(t - begin) / 1e9);
    return 0;
}

/* Takes the chunked coding off; 1 when the last chunk has come. */
static int unchunk(struct peer *p, const char *data, size_t size, char *text, size_t *length)
{
    for (size_t i = 0; i < size; i++) {
        if (!p->in_body) {             /* The header of the answer. */
            p->chunked = data[i] == "\r\n\r\n"[p->chunked] ? p->chunked + 1 : data[i] == '\r';
            p->in_body = p->chunked == 4;
        } else if (p->body_left > 0) {
            size_t n = size - i < (size_t)p->body_left ? size - i : (size_t)p->body_left;
            memcpy(text + *length, data + i, n);
            *length += n;
            p->body_left -= (long)n;
            i += n - 1;
        } else if (data[i] == '\n' && p->have) {
            p->in[p->have] = 0;
            p->body_left = strtol(p->in, NULL, 16);
            p->have = 0;
            if (!p->body_left)
                return 1;
        } else if (data[i] > ' ' && p->have < 16) {
            p->in[p->have++] = data[i];
        }
    }
    return 0;
}

static int times(struct peer *p, const char *data, size_t size)
{
    /* A time that was cut by the end of what was read is put together again. */
    char text[READ + 128];
    size_t length = p->carried;
    memcpy(text, p->carry, p->carried);
    int over = unchunk(p, data, size, text, &length);
    char *at = text, *end = text + length, *found;
    int64_t t = now();
    while ((found = memmem(at, (size_t)(end - at), "\"t\": ", 5)) && end - found >= 25) {
        keep((double)(t - atoll(found + 5)));
        p->left--;
        at = found + 25;
    }
    size_t rest = (size_t)(end - at);
    p->carried = rest < 30 ? rest : 30;
    memcpy(p->carry, end - p->carried, p->carried);
    return over;
}

static int listen_all(int port, int clients, long chunks, long every)
{
    int epoll = epoll_create1(0), open = clients;
    static const char body[] = "{\"model\":\"stream\",\"stream\":true}";
    char request[512];
    size_t size = (size_t)snprintf(request, sizeof request,
                                   "POST /v1/chat/completions?chunks=%ld&every=%ld HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                                   "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", chunks, every, port, sizeof body - 1, body);
    int64_t begin = now();
    for (int i = 0; i < clients; i++) {
        struct peer *p = join(epoll, port);
        p->left = chunks;
        ask(p, request, size);
    }
    struct epoll_event events[256];
    while (open) {
        int n = epoll_wait(epoll, events, 256, 10000);
        if (n <= 0)
            exit(8);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            ssize_t got = recv(p->fd, scratch, READ - 128, 0);
            if (got <= 0) {
                fprintf(stderr, "a stream ended with %ld events missing\n", p->left);
                exit(6);
            }
            if (times(p, scratch, (size_t)got)) {
                if (p->left)
                    exit(9);
                close(p->fd);
                open--;
            }
        }
    }
    report("events", (double)(now() - begin) / 1e9);
    return 0;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    memset(filler, 'a', sizeof filler);
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    if ((argc == 7 || argc == 8) && !strcmp(argv[1], "ask"))
        return ask_all(atoi(argv[2]), atoi(argv[3]), atof(argv[4]), atol(argv[5]), atol(argv[6]), argc == 8 ? argv[7] : NULL);
    if (argc == 6 && !strcmp(argv[1], "listen"))
        return listen_all(atoi(argv[2]), atoi(argv[3]), atol(argv[4]), atol(argv[5]));
    fprintf(stderr, "usage: relay serve PORT | ask PORT CLIENTS SECONDS POSTED BYTES [TARGET] | listen PORT CLIENTS CHUNKS EVERY\n");
    return 2;
}
