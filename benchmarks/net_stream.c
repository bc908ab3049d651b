// SPDX-License-Identifier: GPL-2.0-only
//
// What a guest runs to have its network measured: a stream of bytes one way, or messages to and fro, over TCP.
//
//     stream sink PORT               take one connection, read it to its end, tell bytes and microseconds
//     stream source HOST PORT MB     send so many MiB
//     stream echo PORT               take one connection, send back each byte
//     stream pingpong HOST PORT N    N messages of one byte, each answered; tell microseconds
//
// HOST is an IPv4 address. Static, no library but libc.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

static long long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int taken(const char *port)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
        fail("listen");
    printf("stream: listens\n");
    fflush(stdout);
    int connection = accept(listener, NULL, NULL);
    if (connection < 0)
        fail("accept");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return connection;
}

static int connected(const char *host, const char *port)
{
    int one = 1, connection = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &address.sin_addr);
    if (connect(connection, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return connection;
}

static void put_all(int fd, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, buffer + done, length - done);
        if (n <= 0)
            fail("write");
        done += n;
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "sink")) {
        int fd = taken(argv[2]);
        long long bytes = 0, began = now_us();
        for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;)
            bytes += n;
        printf("stream: %lld bytes in %lld us\n", bytes, now_us() - began);
    } else if (argc == 5 && !strcmp(argv[1], "source")) {
        int fd = connected(argv[2], argv[3]);
        long long began = now_us();
        for (long n = atol(argv[4]) * 16; n > 0; n--)
            put_all(fd, sizeof buffer);
        shutdown(fd, SHUT_WR);
        read(fd, buffer, 1);
        printf("stream: sent in %lld us\n", now_us() - began);
    } else if (argc == 3 && !strcmp(argv[1], "echo")) {
        int fd = taken(argv[2]);
        for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;)
            put_all(fd, n);
    } else if (argc == 5 && !strcmp(argv[1], "pingpong")) {
        int fd = connected(argv[2], argv[3]);
        long count = atol(argv[4]);
        long long began = now_us();
        for (long n = 0; n < count; n++) {
            put_all(fd, 1);
            if (read(fd, buffer, 1) != 1)
                fail("read");
        }
        printf("stream: %ld round trips in %lld us\n", count, now_us() - began);
    } else {
        fprintf(stderr, "stream sink|source|echo|pingpong ...\n");
        return 2;
    }
    return 0;
}
