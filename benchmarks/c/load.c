/* A load generator: IMAP clients without number in one process, on one epoll.
 *
 *     load [--tls] [--resume] PORT [COMMAND]...
 *
 * Connects to 127.0.0.1:PORT, with TLS 1.3 from the first byte if --tls says so;
 * with --resume every connection uses a ticket of an earlier one, once there is
 * one, and each ticket is used once.  Carries out the commands, or without any those that come on
 * standard input, one a line, and answers each with one JSON line.  Sessions
 * stay logged in from one command to the next, so that whoever gives the
 * commands can look at the proxy in between: a warm-up is a command too.
 *
 *     login K N     log in and out N times, K at a time, each on a new connection
 *     open N        log in until N sessions are held
 *     noop K N      N round trips of NOOP, by the first K sessions held, each as fast as it can
 *     down K B      B bytes to the first K sessions held, as one message for each
 *     up K B        B bytes from them, likewise
 *     pour K S      messages of 16 MiB to them one after another, for S seconds
 *     pace K S R    R NOOPs a second in all, the first K sessions held in turn, for S seconds
 *     close         log all held sessions out
 *
 * For example: load 1143 'login 8 1000' 'login 8 20000'
 *
 * Latencies are in microseconds: for login from the connect to the OK of LOGIN,
 * for the others from a command to its OK.  Clients come from many addresses of
 * the loopback network, 100 sessions each, as no proxy lets one address open
 * thousands.  Anything unexpected ends the program with a message and status 1.
 */

#include "wire.h"

#define MOST 20000 /* sessions; untouched ones take no memory */
#define PER_ADDRESS 100
#define OPENING 64 /* sessions that "open" logs in at once */
#define MESSAGE (16 << 20)

enum state { CLOSED, CONNECTING, GREETING, LOGIN, HELD, BUSY, LOGOUT };
enum kind { NONE, LOGINS, OPEN, NOOP, DOWN, UP, POUR, PACE, CLOSE };

typedef struct {
    wire wire;
    unsigned number; /* chooses its address and its user */
    enum state state;
    uint32_t events; /* what epoll waits for */
    char in[1024];   /* read and not yet understood */
    size_t have;     /* bytes in it */
    uint64_t skip;   /* bytes of a literal still to be read */
    uint64_t send;   /* bytes of a literal still to be sent */
    double since;    /* when what is under way began */
    bool bye;        /* LOGOUT has its OK */
} session;

static struct {
    enum kind kind;
    uint64_t begun, wanted, done; /* units */
    uint64_t size;                /* bytes of each message */
    double deadline;              /* for what goes by time */
    uint64_t bytes, resumed;
    float *latency; /* one for each unit done */
    uint64_t space;
} job;

static int epoll, port, held, busy; /* busy: sessions with something under way */
static session sessions[MOST];
static unsigned serial;
static SSL_CTX *tls;
static SSL_SESSION *tickets[1024];
static int ticket_count;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void want(session *s, uint32_t events)
{
    if (s->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = s};
    epoll_ctl(epoll, s->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, s->wire.fd, &event);
    s->events = events;
}

__attribute__((format(printf, 2, 3))) static void send_command(session *s, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (wire_write(&s->wire, text, (size_t)size) != size)
        die("load: cannot send %.20s", text);
}

/* --- units of work ------------------------------------------------------- */

static bool more_to_begin(void)
{
    if (job.kind == POUR)
        return now() < job.deadline;
    return job.kind != PACE && job.begun < job.wanted;
}

static void begin(session *s);

static void unit_done(double since)
{
    if (job.done == job.space) {
        job.space = job.space ? 2 * job.space : 4096;
        job.latency = realloc(job.latency, job.space * sizeof *job.latency);
        if (!job.latency)
            die("load: no memory");
    }
    job.latency[job.done++] = (float)((now() - since) * 1e6);
}

static void hang_up(session *s)
{
    wire_close(&s->wire);
    s->state = CLOSED;
    s->events = 0;
    busy--;
}

/* A session has nothing under way any more. */
static void rest(session *s)
{
    s->state = HELD;
    busy--;
    if (job.kind == OPEN)
        return; /* this slot is filled; `run` begins the next one */
    if (more_to_begin())
        begin(s);
}

static void connect_session(session *s)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    memset(s, 0, sizeof *s);
    s->number = serial++;
    int fd = s->wire.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("load: socket: %s", strerror(errno));
    /* 127.1.0.1 and what follows it; the kernel chooses the port when it knows where to. */
    address.sin_addr.s_addr = htonl(0x7f010001 + s->number / PER_ADDRESS % 250);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        die("load: bind: %s", strerror(errno));
    no_delay(fd);
    s->since = now();
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("load: connect: %s", strerror(errno));
    s->state = CONNECTING;
    want(s, EPOLLOUT);
}

static void begin(session *s)
{
    busy++;
    job.begun++;
    if (job.kind == LOGINS || job.kind == OPEN) {
        connect_session(s);
        return;
    }
    s->state = BUSY;
    s->since = now();
    switch (job.kind) {
    case NOOP:
    case PACE:
        send_command(s, "n NOOP\r\n");
        break;
    case DOWN:
    case POUR:
        send_command(s, "n XPOUR %llu\r\n", (unsigned long long)job.size);
        break;
    case UP:
        send_command(s, "n APPEND INBOX {%llu+}\r\n", (unsigned long long)job.size);
        s->send = job.size;
        want(s, EPOLLIN | EPOLLOUT);
        break;
    default:
        s->state = LOGOUT;
        send_command(s, "z LOGOUT\r\n");
    }
}

/* --- what the proxy says ------------------------------------------------- */

static void logged_in(session *s)
{
    if (s->wire.ssl)
        job.resumed += (uint64_t)SSL_session_reused(s->wire.ssl);
    unit_done(s->since);
    if (job.kind == OPEN) {
        rest(s);
    } else {
        s->state = LOGOUT;
        send_command(s, "z LOGOUT\r\n");
    }
}

static void line(session *s, const char *text)
{
    /* The closing parenthesis belongs to the untagged line whose literal it follows. */
    bool synchronising, untagged = !strncmp(text, "* ", 2) || !strcmp(text, ")");
    if (untagged && s->state == GREETING && !strncmp(text, "* OK", 4)) {
        s->state = LOGIN;
        send_command(s, "a LOGIN u%u@example.com secret\r\n", s->number % 10000);
    } else if (untagged && s->state != GREETING) {
        if (ends_in_literal(text, &s->skip, &synchronising))
            job.bytes += s->skip;
    } else if (s->state == LOGIN && !strncmp(text, "a OK", 4)) {
        logged_in(s);
    } else if (s->state == LOGOUT && !strncmp(text, "z OK", 4)) {
        s->bye = true; /* the end of the connection is the end of the unit */
    } else if (s->state == BUSY && !strncmp(text, "n OK", 4) && !s->send) {
        unit_done(s->since);
        rest(s);
    } else {
        die("load: unexpected: %.100s", text);
    }
}

/* Takes one line or one piece of a literal from what has been read; false: there is none. */
static bool understand(session *s)
{
    size_t used;
    if (!s->have)
        return false;
    if (s->skip) {
        used = s->skip < s->have ? (size_t)s->skip : s->have;
        s->skip -= used;
    } else {
        char *end = memchr(s->in, '\n', s->have);
        if (!end) {
            if (s->have == sizeof s->in)
                die("load: a line is longer than %zu bytes", sizeof s->in);
            return false;
        }
        used = (size_t)(end - s->in) + 1;
        *end = '\0';
        if (end > s->in && end[-1] == '\r')
            end[-1] = '\0';
        line(s, s->in);
    }
    s->have -= used;
    memmove(s->in, s->in + used, s->have);
    return true;
}

static void ended(session *s)
{
    if (s->state != LOGOUT || !s->bye)
        die("load: a session was cut off (state %d)%s", s->state, s->have ? " within a line" : "");
    hang_up(s);
    if (job.kind == LOGINS && more_to_begin())
        begin(s);
    else if (job.kind == CLOSE)
        held--;
}

static void read_session(session *s)
{
    do {
        ssize_t n;
        if (s->skip && !s->have) {
            n = wire_skip(&s->wire, s->skip);
            s->skip -= n > 0 ? (uint64_t)n : 0;
        } else {
            n = wire_read(&s->wire, s->in + s->have, sizeof s->in - s->have);
            s->have += n > 0 ? (size_t)n : 0;
        }
        if (n == GONE) {
            ended(s);
            return;
        }
        if (n == AGAIN)
            return;
        while (understand(s))
            continue;
    } while (wire_pending(&s->wire));
}

static void write_session(session *s)
{
    ssize_t n = wire_write(&s->wire, chunk, s->send < CHUNK ? (size_t)s->send : CHUNK);
    if (n == GONE)
        die("load: a session was cut off while it sent");
    if (n == AGAIN)
        return;
    job.bytes += (uint64_t)n;
    if (!(s->send -= (uint64_t)n)) {
        want(s, EPOLLIN);
        send_command(s, "\r\n");
    }
}

/* --- connecting ---------------------------------------------------------- */

static void shake_hands(session *s)
{
    if (!s->wire.ssl) {
        s->wire.ssl = SSL_new(tls);
        SSL_set_fd(s->wire.ssl, s->wire.fd);
        SSL_set_connect_state(s->wire.ssl);
        if (ticket_count) {
            SSL_SESSION *ticket = tickets[--ticket_count];
            SSL_set_session(s->wire.ssl, ticket);
            SSL_SESSION_free(ticket);
        }
    }
    int n = SSL_do_handshake(s->wire.ssl);
    if (n == 1) {
        s->state = GREETING;
        want(s, EPOLLIN);
        read_session(s); /* the greeting may have come along */
    } else if (outcome(&s->wire, n) == AGAIN) {
        want(s, wire_waits_for(&s->wire));
    } else {
        die("load: the TLS handshake failed");
    }
}

static void connected(session *s)
{
    int error = 0;
    getsockopt(s->wire.fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
    if (error)
        die("load: cannot connect to port %d: %s", port, strerror(error));
    if (tls) {
        shake_hands(s);
        return;
    }
    s->state = GREETING;
    want(s, EPOLLIN);
}

static int keep_ticket(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    if (ticket_count == sizeof tickets / sizeof *tickets)
        return 0;
    tickets[ticket_count++] = session;
    return 1; /* the reference is ours now */
}

/* --- commands ------------------------------------------------------------ */

static void handle(session *s, uint32_t events)
{
    if (s->state == CLOSED)
        return;
    if (s->state == CONNECTING) {
        connected(s);
        return;
    }
    if (s->send && events & EPOLLOUT)
        write_session(s);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        read_session(s);
}

/* Handles what there is, or waits until there is something: for some seconds, or for ever if negative. */
static void poll_once(double seconds)
{
    struct epoll_event ready[256];
    struct timespec wait = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (time_t)seconds) * 1e9)};
    int count = epoll_pwait2(epoll, ready, 256, seconds < 0 ? NULL : &wait, NULL);
    for (int i = 0; i < count; i++)
        handle(ready[i].data.ptr, ready[i].events);
}

/* NOOPs at an even pace, whatever the answers take. */
static void pace(int k, double rate)
{
    double due = now();
    for (uint64_t next = 0; now() < job.deadline;) {
        for (; due <= now(); due += 1 / rate, next++) {
            session *s = &sessions[next % (uint64_t)k];
            if (s->state == HELD)
                begin(s); /* one that still waits shows in the latency of its last NOOP */
        }
        double wait = due - now();
        poll_once(wait > 0 ? wait : 0);
    }
}

static void run(int k)
{
    int first = job.kind == OPEN ? held : 0;
    for (int i = first; i < first + k && more_to_begin(); i++)
        begin(&sessions[i]);
    while (busy) {
        poll_once(-1);
        if (job.kind == OPEN) /* the next slots, one for each that has been filled */
            for (; job.begun < job.wanted && busy < OPENING; )
                begin(&sessions[held + (int)job.begun]);
    }
    if (job.kind == OPEN)
        held += (int)job.wanted;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(const char *name, double seconds)
{
    uint64_t n = job.done;
    qsort(job.latency, n, sizeof *job.latency, by_size);
    printf("{\"command\": \"%s\", \"units\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"held\": %d, \"resumed\": %llu",
           name, (unsigned long long)n, (unsigned long long)job.bytes, seconds, held,
           (unsigned long long)job.resumed);
    if (n)
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f", (double)job.latency[n / 2], (double)job.latency[n * 99 / 100]);
    printf("}\n");
    fflush(stdout);
}

/* Sets the job for a command with its numbers: how many units of what size, by how many sessions at first. */
static int set_job(enum kind kind, int k, double b)
{
    job.kind = kind;
    job.begun = job.done = job.bytes = job.resumed = 0;
    job.deadline = now() + b;
    job.size = MESSAGE;
    switch (kind) {
    case OPEN:
        job.wanted = k > held ? (uint64_t)(k - held) : 0;
        return OPENING;
    case CLOSE:
        job.wanted = (uint64_t)held;
        return held;
    case DOWN:
    case UP:
        job.wanted = (uint64_t)k;
        job.size = (uint64_t)b / (uint64_t)k;
        return k;
    case PACE:
        return 0; /* `pace` begins all of them */
    default:
        job.wanted = (uint64_t)b;
        return k;
    }
}

static void obey(const char *command)
{
    static const char *const names[] = {"", "login", "open", "noop", "down", "up", "pour", "pace", "close"};
    static const int words_needed[] = {0, 3, 2, 3, 3, 3, 3, 4, 1};
    char name[16];
    double a = 0, b = 0, rate = 0;
    int words = sscanf(command, "%15s %lf %lf %lf", name, &a, &b, &rate);
    enum kind kind = CLOSE;
    while (kind != NONE && strcmp(name, names[kind]))
        kind--;
    if (words < 1 || kind == NONE || words < words_needed[kind])
        die("load: not a command: %s", command);

    int k = (int)a;
    if (kind == LOGINS && held)
        die("load: login needs all sessions closed");
    if (kind >= NOOP && kind != CLOSE && (k > held || k < 1))
        die("load: %s: %d sessions are held", command, held);
    if (k > MOST)
        die("load: %s: no more than %d sessions", command, MOST);
    double start = now();
    k = set_job(kind, k, b);
    if (kind == PACE)
        pace((int)a, rate);
    run(k);
    report(name, now() - start);
}

int main(int argc, char **argv)
{
    bool resume = false;
    for (; argc > 1 && !strncmp(argv[1], "--", 2); argc--, argv++) {
        if (!strcmp(argv[1], "--resume"))
            resume = true;
        else if (strcmp(argv[1], "--tls"))
            die("load: no such option: %s", argv[1]);
        tls = tls ? tls : tls_context(TLS_client_method());
    }
    if (argc < 2 || !(port = atoi(argv[1])))
        die("usage: load [--tls] [--resume] PORT [COMMAND]...");
    if (resume) {
        SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(tls, keep_ticket);
    }
    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    fill_chunk();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 2; i < argc; i++)
        obey(argv[i]);
    char *text = NULL;
    size_t size = 0;
    while (argc == 2 && getline(&text, &size, stdin) > 0)
        obey(text);
    free(text);
    return 0;
}
