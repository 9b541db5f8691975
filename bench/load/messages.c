/* Clients of an access node that send each other messages, in one thread, so that the server has the other core.

   messages PORT CONNECTIONS PAD_BYTES
   Prints "ready", reads a ticket a line for each connection, connects all on 127.0.0.1 and prints "open". Client number i
   is the user "load-%07d". Each line on standard input is then an order:

       closed IN_FLIGHT WARM_UP_S SECONDS    keep so many messages under way
       open   RATE      WARM_UP_S SECONDS    send by a schedule that waits for nobody

   It prints "begin" when the warm-up is over, and at the end a line of JSON with what happened in between. A message is
   done when its sender has the acknowledgement and its receiver the publication. Times count from when it was meant to
   leave, and in microseconds. WebSocket frames: RFC 6455, 5.2; the client protocol in JSON: see access/core/protocol. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 256, CONTACTS = 16, PAD_MAX = 4096, FLYING_MAX = 1 << 20, CONNECTING_MAX = 64 };
enum { ACKED = 1, DELIVERED = 2 };

struct client {
    int socket, filled, is_open;
    long offset; /* of the last entry of its inbox, -1 before the first */
    char *buffer;
};

struct message {
    int64_t due; /* ns */
    int sender, receiver;
    int state;
};

static struct client *clients;
static struct message *messages; /* a ring by number */
static int count, poller, run_number, opened;
static char pad[PAD_MAX + 1];
static uint32_t mask_word = 0x5ac3917e, seed = 1;

static int64_t next_number, in_flight;
static int64_t first_measured; /* messages from this number on are measured */
static int64_t acked, delivered, done, errors, gaps, lost;
static uint32_t *ack_us, *delivery_us;
static int64_t ack_count, delivery_count, samples_max;
static int is_measuring;

static int64_t now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void send_text(struct client *client, const char *text, size_t size)
{
    unsigned char frame[PAD_MAX + 2048];
    size_t head = 2;
    frame[0] = 0x81;
    if (size <= 125) {
        frame[1] = (unsigned char)(0x80 | size);
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = (unsigned char)(size >> 8);
        frame[3] = (unsigned char)size;
        head = 4;
    }
    const unsigned char *mask = (const unsigned char *)&mask_word;
    memcpy(frame + head, mask, 4);
    for (size_t i = 0; i < size; i++)
        frame[head + 4 + i] = (unsigned char)text[i] ^ mask[i & 3];
    if (send(client->socket, frame, head + 4 + size, MSG_NOSIGNAL) != (ssize_t)(head + 4 + size))
        fail("send");
}

static void send_message(int64_t due)
{
    char text[PAD_MAX + 512];
    int64_t number = next_number++;
    struct message *message = &messages[number % FLYING_MAX];
    seed = seed * 1664525u + 1013904223u;
    int sender = (int)(number % count);
    int receiver = (sender + 1 + (int)((seed >> 16) % CONTACTS)) % count;
    if (message->state != (ACKED | DELIVERED))
        lost++; /* never came back, a million messages ago */
    *message = (struct message){due, sender, receiver, 0};
    in_flight++;
    int size = snprintf(text, sizeof text,
                        "{\"id\":%ld,\"rpc\":{\"method\":\"im.send\",\"data\":{\"to\":\"load-%07d\","
                        "\"client_msg_id\":\"r%d-%010ld\",\"body\":{\"pad\":\"%s\"}}}}",
                        (long)number + 2, receiver, run_number, (long)number, pad);
    send_text(&clients[sender], text, (size_t)size);
}

static void note(int64_t number, int what, uint32_t *samples, int64_t *sample_count, int64_t at)
{
    struct message *message = &messages[number % FLYING_MAX];
    if (number >= next_number || number < next_number - FLYING_MAX || message->state & what)
        return;
    message->state |= what;
    if (is_measuring) {
        if (what == ACKED)
            acked++;
        else
            delivered++;
        if (number >= first_measured && *sample_count < samples_max)
            samples[(*sample_count)++] = (uint32_t)((at - message->due) / 1000);
    }
    if (message->state == (ACKED | DELIVERED)) {
        in_flight--;
        if (is_measuring)
            done++;
    }
}

/* A message was refused: nothing more will come of it. */
static void give_up(int64_t number)
{
    struct message *message = &messages[number % FLYING_MAX];
    if (number < next_number && number >= next_number - FLYING_MAX && message->state != (ACKED | DELIVERED)) {
        message->state = ACKED | DELIVERED;
        in_flight--;
    }
}

static void take_push(int index, const char *text, size_t size, int64_t at)
{
    static const char key[] = "\"client_msg_id\":\"r";
    struct client *client = &clients[index];
    const char *offset = NULL;
    for (const char *place = text + size - 9; place > text && place > text + size - 64 && offset == NULL; place--)
        if (memcmp(place, "\"offset\":", 9) == 0)
            offset = place + 9;
    if (offset == NULL)
        return; /* not of the inbox */
    long position = atol(offset);
    if (client->offset >= 0 && position != client->offset + 1)
        gaps++;
    client->offset = position;
    const char *found = memmem(text, size, key, sizeof key - 1);
    if (found == NULL)
        return;
    char *end;
    long run = strtol(found + sizeof key - 1, &end, 10);
    int64_t number = strtol(end + 1, NULL, 10);
    if (run == run_number && messages[number % FLYING_MAX].receiver == index)
        note(number, DELIVERED, delivery_us, &delivery_count, at);
}

static void take_text(int index, const char *text, size_t size, int64_t at)
{
    struct client *client = &clients[index];
    if (size == 2) {
        send_text(client, "{}", 2); /* a ping */
    } else if (size > 6 && memcmp(text, "{\"id\":", 6) == 0) {
        long id = atol(text + 6);
        int is_error = memmem(text, size < 40 ? size : 40, "\"error\"", 7) != NULL;
        if (is_error && errors++ < 3)
            fprintf(stderr, "%.*s\n", (int)size, text);
        if (id == 1) {
            opened++;
            client->is_open = !is_error;
        } else if (is_error) {
            give_up(id - 2);
        } else {
            note(id - 2, ACKED, ack_us, &ack_count, at);
        }
    } else if (size > 8 && memcmp(text, "{\"push\":", 8) == 0) {
        take_push(index, text, size, at);
    }
}

static void take_bytes(int index, int64_t at)
{
    struct client *client = &clients[index];
    unsigned char *start = (unsigned char *)client->buffer, *end = start + client->filled;
    while (end - start >= 2) {
        size_t size = start[1], head = 2;
        if (size == 126) {
            if (end - start < 4)
                break;
            size = (size_t)start[2] << 8 | start[3];
            head = 4;
        } else if (size == 127) {
            fprintf(stderr, "a frame is too long\n");
            exit(1);
        }
        if ((size_t)(end - start) < head + size)
            break;
        if (start[0] == 0x88) {
            fprintf(stderr, "closed: %.*s\n", (int)size - 2, start + head + 2);
            exit(1);
        }
        char *text = (char *)start + head, *stop = text + size;
        while (text < stop) { /* several messages of a frame are lines */
            char *line = memchr(text, '\n', (size_t)(stop - text));
            if (line == NULL)
                line = stop;
            take_text(index, text, (size_t)(line - text), at);
            text = line + 1;
        }
        start += head + size;
    }
    client->filled = (int)(end - start);
    memmove(client->buffer, start, (size_t)client->filled);
}

/* Take what has come, waiting for it at most so long. */
static void take(int wait_ms)
{
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(poller, events, EVENTS, wait_ms);
    int64_t at = now_ns();
    for (int i = 0; i < ready; i++) {
        int index = (int)events[i].data.u32;
        struct client *client = &clients[index];
        ssize_t size = recv(client->socket, client->buffer + client->filled, (size_t)(BUFFER - client->filled), 0);
        if (size <= 0) {
            fprintf(stderr, "client %d lost its connection\n", index);
            exit(1);
        }
        client->filled += (int)size;
        take_bytes(index, at);
    }
}

static void connect_one(int index, int port, const char *ticket)
{
    static const char hello[] = "GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                                "Sec-WebSocket-Version: 13\r\n\r\n";
    struct client *client = &clients[index];
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char text[2048];
    int one = 1;
    client->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (client->socket < 0 || connect(client->socket, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    client->buffer = malloc(BUFFER);
    client->offset = -1;
    if (client->buffer == NULL || send(client->socket, hello, sizeof hello - 1, MSG_NOSIGNAL) != sizeof hello - 1)
        fail("hello");
    char *end = NULL;
    while (end == NULL) {
        ssize_t size = recv(client->socket, client->buffer + client->filled, (size_t)(BUFFER - client->filled), 0);
        if (size <= 0)
            fail("upgrade");
        client->filled += (int)size;
        end = memmem(client->buffer, (size_t)client->filled, "\r\n\r\n", 4);
    }
    if (memcmp(client->buffer, "HTTP/1.1 101", 12) != 0) {
        fprintf(stderr, "%.*s\n", client->filled, client->buffer);
        exit(1);
    }
    client->filled -= (int)(end + 4 - client->buffer);
    memmove(client->buffer, end + 4, (size_t)client->filled);
    int size = snprintf(text, sizeof text, "{\"id\":1,\"connect\":{\"token\":\"%s\"}}", ticket);
    send_text(client, text, (size_t)size);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, client->socket, &event) != 0)
        fail("epoll_ctl");
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

static void print_times(const char *name, uint32_t *samples, int64_t size)
{
    qsort(samples, (size_t)size, sizeof *samples, compare);
    printf("\"%s\":{\"count\":%ld", name, (long)size);
    if (size > 0)
        printf(",\"p50\":%u,\"p99\":%u,\"p999\":%u,\"max\":%u", samples[size / 2], samples[size * 99 / 100],
               samples[size * 999 / 1000], samples[size - 1]);
    printf("}");
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void run(int is_closed, double amount, double warm_up_s, double seconds)
{
    int64_t began = now_ns(), measured_from = began + (int64_t)(warm_up_s * 1e9);
    int64_t ends = measured_from + (int64_t)(seconds * 1e9), first = next_number, behind_ns = 0;
    double cpu_before = 0;
    int is_warm = 0;
    run_number++;
    acked = delivered = done = errors = gaps = lost = ack_count = delivery_count = 0;
    for (;;) {
        int64_t at = now_ns();
        if (!is_warm && at >= measured_from) {
            is_warm = is_measuring = 1;
            first_measured = next_number;
            cpu_before = cpu_s();
            printf("begin\n");
            fflush(stdout);
        }
        if (at >= ends)
            break;
        if (is_closed) {
            while (in_flight < (int64_t)amount)
                send_message(now_ns());
            take(1);
        } else {
            int64_t due;
            while ((due = began + (int64_t)((double)(next_number - first) * 1e9 / amount)) <= at) {
                if (at - due > behind_ns)
                    behind_ns = at - due;
                send_message(due);
            }
            take(1); /* or it would take a whole core; what is late by it counts */
        }
    }
    is_measuring = 0;
    printf("{\"sent\":%ld,\"acked\":%ld,\"delivered\":%ld,\"done\":%ld,\"errors\":%ld,\"gaps\":%ld,\"lost\":%ld,"
           "\"in_flight\":%ld,\"seconds\":%.6f,\"cpu_s\":%.6f,\"behind_us\":%ld,",
           (long)(next_number - first_measured), (long)acked, (long)delivered, (long)done, (long)errors, (long)gaps,
           (long)lost, (long)in_flight, (double)(now_ns() - measured_from) / 1e9, cpu_s() - cpu_before,
           (long)(behind_ns / 1000));
    print_times("ack_us", ack_us, ack_count);
    printf(",");
    print_times("delivery_us", delivery_us, delivery_count);
    printf("}\n");
    fflush(stdout);
    for (int64_t until = now_ns() + 5000000000LL; in_flight > 0 && now_ns() < until;)
        take(10);
    /* What did not come by now is lost, and must not hold the next run up. */
    in_flight = 0;
}

int main(int argc, char **argv)
{
    int port = argc > 3 ? atoi(argv[1]) : 0, pad_bytes = argc > 3 ? atoi(argv[3]) : 0;
    count = argc > 3 ? atoi(argv[2]) : 0;
    if (port < 1 || count <= CONTACTS || pad_bytes < 0 || pad_bytes > PAD_MAX)
        return 2;
    memset(pad, 'x', (size_t)pad_bytes);
    samples_max = 4000000;
    clients = calloc((size_t)count, sizeof *clients);
    messages = calloc(FLYING_MAX, sizeof *messages);
    ack_us = malloc((size_t)samples_max * sizeof *ack_us);
    delivery_us = malloc((size_t)samples_max * sizeof *delivery_us);
    poller = epoll_create1(0);
    if (clients == NULL || messages == NULL || ack_us == NULL || delivery_us == NULL || poller < 0)
        fail("messages");
    for (int64_t i = 0; i < FLYING_MAX; i++)
        messages[i].state = ACKED | DELIVERED;
    printf("ready\n");
    fflush(stdout);
    char line[4096];
    for (int i = 0; i < count && fgets(line, sizeof line, stdin) != NULL; i++) {
        line[strcspn(line, "\n")] = 0;
        connect_one(i, port, line);
        while (opened <= i - CONNECTING_MAX)
            take(100);
    }
    while (opened < count)
        take(100);
    printf("open\n");
    fflush(stdout);
    for (;;) {
        struct pollfd orders = {.fd = STDIN_FILENO, .events = POLLIN};
        char kind[16];
        double amount, warm_up_s, seconds;
        while (poll(&orders, 1, 0) == 0)
            take(100); /* pings want an answer */
        if (scanf("%15s %lf %lf %lf", kind, &amount, &warm_up_s, &seconds) != 4)
            return 0;
        run(strcmp(kind, "closed") == 0, amount, warm_up_s, seconds);
    }
}
