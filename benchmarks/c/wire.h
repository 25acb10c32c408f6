/* What the mock backend and the load generator share: a connection in plain or in TLS, and a few helpers. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* One suite and one group, so that every proxy does the same cryptography on either leg.
 * The second group is for a proxy that cannot do the first. */
#define CIPHERSUITE "TLS_AES_256_GCM_SHA384"
#define GROUPS "X25519:P-256"

#define CHUNK (256 * 1024) /* bytes that one event moves at most, so that no connection starves the others */

static char chunk[CHUNK];

typedef struct {
    int fd;
    SSL *ssl; /* NULL: in plain */
} wire;

enum { AGAIN = -1, GONE = -2 };

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* Nobody sends this on purpose; it only has to look like lines of mail. */
static void fill_chunk(void)
{
    for (size_t i = 0; i < CHUNK; i++)
        chunk[i] = i % 76 == 74 ? '\r' : i % 76 == 75 ? '\n' : (char)('a' + i % 26);
}

static ssize_t outcome(wire *w, ssize_t n)
{
    if (n > 0)
        return n;
    if (!w->ssl)
        return n == 0 ? GONE : errno == EAGAIN || errno == EINTR ? AGAIN : GONE;
    int error = SSL_get_error(w->ssl, (int)n);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? AGAIN : GONE;
}

/* Bytes read, AGAIN or GONE. */
static ssize_t wire_read(wire *w, void *into, size_t size)
{
    return outcome(w, w->ssl ? SSL_read(w->ssl, into, (int)size) : recv(w->fd, into, size, 0));
}

/* Bytes read and thrown away, AGAIN or GONE.  In plain nothing is even copied. */
static ssize_t wire_skip(wire *w, uint64_t size)
{
    static char rubbish[64 * 1024];
    if (!w->ssl)
        return outcome(w, recv(w->fd, NULL, size < 4 * CHUNK ? size : 4 * CHUNK, MSG_TRUNC));
    return outcome(w, SSL_read(w->ssl, rubbish, (int)(size < sizeof rubbish ? size : sizeof rubbish)));
}

/* Bytes written, AGAIN or GONE. */
static ssize_t wire_write(wire *w, const void *from, size_t size)
{
    return outcome(w, w->ssl ? SSL_write(w->ssl, from, (int)size) : send(w->fd, from, size, MSG_NOSIGNAL));
}

/* Tells whether there is more to read that epoll does not know of. */
static bool wire_pending(wire *w)
{
    return w->ssl && SSL_pending(w->ssl) > 0;
}

/* What epoll is to wait for when something could not be written: in a handshake that may be the peer's turn. */
static uint32_t wire_waits_for(wire *w)
{
    return w->ssl && SSL_want_read(w->ssl) ? EPOLLIN : EPOLLOUT;
}

static void wire_close(wire *w)
{
    if (w->ssl) {
        SSL_shutdown(w->ssl);
        ERR_clear_error();
        SSL_free(w->ssl);
    }
    close(w->fd);
    w->fd = -1;
    w->ssl = NULL;
}

static SSL_CTX *tls_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, CIPHERSUITE) || !SSL_CTX_set1_groups_list(context, GROUPS))
        die("cannot make a TLS context with %s and %s", CIPHERSUITE, GROUPS);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    return context;
}

static void no_delay(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

/* As many descriptors as we may have. */
static void raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Puts into *size how long the literal is that a line announces at its end: {12} or {12+}. */
static bool ends_in_literal(const char *line, uint64_t *size, bool *synchronising)
{
    const char *brace = strrchr(line, '{');
    char *end;
    if (!brace || brace[1] < '0' || brace[1] > '9')
        return false;
    *size = strtoull(brace + 1, &end, 10);
    *synchronising = *end != '+';
    return strcmp(*synchronising ? end : end + 1, "}") == 0;
}
