/* The limit that a fan-out is compared with: nothing but send() of one frame on every socket.

   send_loop CONNECTIONS PAYLOAD_BYTES
   Prints its port and accepts so many connections on 127.0.0.1. For each line on standard input it sends an
   unmasked WebSocket text frame (RFC 6455, 5.2) to all of them. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[1]) : 0, size = argc > 2 ? atoi(argv[2]) : 0, one = 1;
    if (count < 1 || size < 1 || size > 125)
        return 2;

    char frame[127], line[16];
    frame[0] = (char)0x81;
    frame[1] = (char)size;
    memset(frame + 2, 'x', (size_t)size);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), *sockets = malloc(sizeof(int) * (size_t)count);
    if (listener < 0 || sockets == NULL || bind(listener, (struct sockaddr *)&address, length) != 0 ||
        listen(listener, 4096) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        perror("send_loop");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    for (int i = 0; i < count; i++) {
        sockets[i] = accept(listener, NULL, NULL);
        if (sockets[i] < 0) {
            perror("accept");
            return 1;
        }
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        for (int i = 0; i < count; i++)
            if (send(sockets[i], frame, (size_t)size + 2, MSG_NOSIGNAL) != size + 2) {
                perror("send");
                return 1;
            }
    }
    return 0;
}
