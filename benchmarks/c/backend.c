/* A mock IMAP server: takes every login, and does next to nothing quickly.
 *
 *     backend [--tls CERTIFICATE KEY] [PORT]
 *
 * Listens on 127.0.0.1 and prints "port N" once it does; without PORT the kernel
 * chooses one.  With --tls it speaks TLS from the first byte.  It ends when it
 * is killed.  Its commands, besides what RFC 3501 says of them:
 *
 *     t XPOUR N             * 1 FETCH (BODY[] {N} ... N bytes ...), then t OK
 *     t APPEND INBOX {N+}   reads N bytes and throws them away, then t OK
 *
 * Anything else that it does not know gets a BAD.  One process, one epoll.
 */

#include "wire.h"

#define CAPABILITIES "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN"
#define AFTER_LOGIN "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ UIDPLUS MOVE"

typedef struct {
    wire wire;
    uint32_t events;   /* what epoll waits for */
    char in[2048];     /* read and not yet understood */
    size_t have;       /* bytes in it */
    char out[1024];    /* to be sent before anything else */
    size_t out_size;   /* bytes in it */
    uint64_t pour;     /* bytes of a message still to be sent */
    uint64_t skip;     /* bytes of a literal still to be read */
    int challenges;    /* lines of a SASL exchange still to be read */
    char tag[64];      /* of the command under way; "" if the next line begins one */
    char verb[16];
    bool last;         /* hang up once everything is sent */
} connection;

static int epoll;
static SSL_CTX *tls;

__attribute__((format(printf, 2, 3))) static void say(connection *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(c->out + c->out_size, sizeof c->out - c->out_size, format, arguments);
    va_end(arguments);
    if (size < 0 || c->out_size + (size_t)size >= sizeof c->out)
        die("backend: an answer does not fit");
    c->out_size += (size_t)size;
}

static void ok(connection *c, const char *text)
{
    say(c, "%s OK %s\r\n", c->tag, text);
}

/* --- commands ------------------------------------------------------------ */

/* Answers a command that has been read to its end. */
static void answer(connection *c, const char *arguments)
{
    const char *verb = c->verb;
    if (!strcasecmp(verb, "NOOP")) {
        ok(c, "NOOP completed.");
    } else if (!strcasecmp(verb, "LOGIN") || !strcasecmp(verb, "AUTHENTICATE")) {
        ok(c, "[CAPABILITY " AFTER_LOGIN "] Logged in");
    } else if (!strcasecmp(verb, "ID")) {
        say(c, "* ID (\"name\" \"mock\")\r\n");
        ok(c, "ID completed.");
    } else if (!strcasecmp(verb, "CAPABILITY")) {
        say(c, "* CAPABILITY " CAPABILITIES "\r\n");
        ok(c, "Capability completed.");
    } else if (!strcasecmp(verb, "LOGOUT")) {
        say(c, "* BYE Logging out\r\n");
        ok(c, "Logout completed.");
        c->last = true;
    } else if (!strcasecmp(verb, "APPEND")) {
        ok(c, "Append completed.");
    } else if (!strcasecmp(verb, "XPOUR")) {
        c->pour = strtoull(arguments, NULL, 10);
        say(c, "* 1 FETCH (BODY[] {%llu}\r\n", (unsigned long long)c->pour);
        return; /* the rest follows the message */
    } else {
        say(c, "%s BAD unknown command\r\n", c->tag);
    }
    c->tag[0] = '\0';
}

static int challenges(const char *arguments)
{
    if (!strncasecmp(arguments, "LOGIN", 5))
        return 2;
    return strchr(arguments, ' ') ? 0 : 1; /* PLAIN, with its initial response or without */
}

static void line(connection *c, char *text)
{
    uint64_t literal;
    bool synchronising, first = !c->tag[0];
    const char *arguments = text;
    if (first) {
        int used = 0;
        if (sscanf(text, "%63s %15s %n", c->tag, c->verb, &used) < 2) {
            say(c, "* BAD a command has a tag and a name\r\n");
            c->tag[0] = '\0';
            return;
        }
        arguments = text + used;
        if (!strcasecmp(c->verb, "AUTHENTICATE"))
            c->challenges = challenges(arguments);
    } else if (c->challenges) {
        c->challenges--;
    }
    if (c->challenges) {
        say(c, "+ \r\n");
    } else if (ends_in_literal(text, &literal, &synchronising)) {
        c->skip = literal;
        if (synchronising)
            say(c, "+ OK\r\n");
    } else {
        answer(c, arguments);
    }
}

/* Takes one line or one piece of a literal from what has been read; false: there is none. */
static bool understand(connection *c)
{
    size_t used;
    if (!c->have)
        return false;
    if (c->skip) {
        used = c->skip < c->have ? (size_t)c->skip : c->have;
        c->skip -= used;
    } else {
        char *end = memchr(c->in, '\n', c->have);
        if (!end) {
            if (c->have == sizeof c->in)
                die("backend: a line is longer than %zu bytes", sizeof c->in);
            return false;
        }
        used = (size_t)(end - c->in) + 1;
        *end = '\0';
        if (end > c->in && end[-1] == '\r')
            end[-1] = '\0';
        line(c, c->in);
    }
    c->have -= used;
    memmove(c->in, c->in + used, c->have);
    return true;
}

/* --- bytes --------------------------------------------------------------- */

static void want(connection *c, uint32_t events)
{
    if (c->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->wire.fd, &event);
    c->events = events;
}

/* Sends what there is, at most one chunk of it: bytes left, or GONE. */
static ssize_t flush(connection *c)
{
    if (c->out_size) {
        ssize_t n = wire_write(&c->wire, c->out, c->out_size);
        if (n == GONE)
            return GONE;
        if (n > 0) {
            c->out_size -= (size_t)n;
            memmove(c->out, c->out + n, c->out_size);
        }
    }
    if (c->pour && !c->out_size) {
        ssize_t n = wire_write(&c->wire, chunk, c->pour < CHUNK ? (size_t)c->pour : CHUNK);
        if (n == GONE)
            return GONE;
        if (n > 0 && !(c->pour -= (uint64_t)n)) {
            say(c, ")\r\n");
            ok(c, "Fetch completed.");
            c->tag[0] = '\0';
        }
    }
    return (ssize_t)(c->out_size + c->pour);
}

/* Serves a connection that epoll has named, once; false: it is over. */
static bool serve(connection *c)
{
    bool has_read = false;
    for (;;) {
        /* A quarter of the space is always enough for one more answer. */
        while (!c->pour && !c->last && c->out_size < sizeof c->out / 4 && understand(c))
            continue;
        bool waiting = c->out_size || c->pour;
        ssize_t left = waiting ? flush(c) : 0;
        if (left) {
            want(c, wire_waits_for(&c->wire));
            return left != GONE;
        }
        if (c->last)
            return false;
        if (waiting && c->have)
            continue; /* there is space for answers again */
        if (has_read && !wire_pending(&c->wire)) {
            want(c, EPOLLIN);
            return true;
        }
        ssize_t n;
        if (c->skip) {
            n = wire_skip(&c->wire, c->skip);
            c->skip -= n > 0 ? (uint64_t)n : 0;
        } else {
            n = wire_read(&c->wire, c->in + c->have, sizeof c->in - c->have);
            c->have += n > 0 ? (size_t)n : 0;
        }
        if (n == GONE)
            return false;
        if (n == AGAIN) {
            want(c, EPOLLIN);
            return true;
        }
        has_read = true;
    }
}

static void end(connection *c)
{
    wire_close(&c->wire);
    free(c);
}

/* --- connections --------------------------------------------------------- */

static void greet(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        connection *c = calloc(1, sizeof *c);
        if (!c)
            die("backend: no memory");
        no_delay(fd);
        c->wire.fd = fd;
        if (tls) {
            c->wire.ssl = SSL_new(tls);
            SSL_set_fd(c->wire.ssl, fd);
            SSL_set_accept_state(c->wire.ssl);
        }
        say(c, "* OK [CAPABILITY " CAPABILITIES "] mock ready.\r\n");
        if (!serve(c))
            end(c);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("backend: accept: %s", strerror(errno));
}

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        die("backend: cannot listen on port %d: %s", port, strerror(errno));
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && !strcmp(argv[1], "--tls")) {
        tls = tls_context(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(tls, argv[2]) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, argv[3], SSL_FILETYPE_PEM) != 1)
            die("backend: cannot use the certificate %s with the key %s", argv[2], argv[3]);
        argc -= 3;
        argv += 3;
    }
    if (argc > 2)
        die("usage: backend [--tls CERTIFICATE KEY] [PORT]");
    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    fill_chunk();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(argc == 2 ? atoi(argv[1]) : 0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            connection *c = ready[i].data.ptr;
            if (!c)
                greet(listener);
            else if (!serve(c))
                end(c);
        }
    }
}
