/* An engine for measurements: healthy after a given time, and it writes down exactly when it began, was told to end, ended.
 *
 * engine PORT LOG READY_AFTER_S STOP_AFTER_S: each line of LOG is an event and a time of CLOCK_MONOTONIC. It is in C so
 * that its own start takes no time that could be taken for gpud's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static FILE *log_file;
static double stop_after;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void note(const char *event, double at)
{
    fprintf(log_file, "%s %.6f\n", event, at);
    fflush(log_file);
}

static void stop(int number)
{
    (void)number;
    note("term", now());
    usleep((useconds_t)(stop_after * 1e6));
    note("exit", now());
    _exit(0);
}

int main(int argc, char **argv)
{
    double began = now();
    if (argc != 5 || !(log_file = fopen(argv[2], "a")))
        return 2;
    double ready_at = began + atof(argv[3]);
    stop_after = atof(argv[4]);
    note("exec", began);
    signal(SIGTERM, stop);
    int server = socket(AF_INET, SOCK_STREAM, 0), one = 1, told = 0;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 64))
        return 1;
    for (;;) {
        char request[65536];
        int client = accept(server, NULL, NULL);
        if (client < 0)
            continue;
        if (read(client, request, sizeof request) > 0) {
            /* It is ready at ready_at whether or not somebody asks in that moment. */
            int ready = now() >= ready_at;
            if (ready && !told) {
                told = 1;
                note("ready", ready_at);
            }
            const char *answer = ready ? "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
                                       : "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
            if (write(client, answer, strlen(answer)) < 0 && errno != EPIPE)
                perror("write");
        }
        close(client);
    }
}
