/* What a process sees when the whole system has as many open files as it may have.
 *
 * Root is exempt from that, so it cannot be brought about where the tests run as root.  Loaded in front of
 * libc (LD_PRELOAD), this gives the kernel's answer, ENFILE, to every call that would make an open file, as
 * long as there is a file with the name that FULL_TABLE has.  As in the kernel, a connection that cannot be
 * accepted stays in the queue.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int full(void)
{
    const char *name = getenv("FULL_TABLE");
    int before = errno;

    if (name && access(name, F_OK) == 0) {
        errno = ENFILE;
        return 1;
    }
    errno = before;
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...)                       \
    {                                                                \
        va_list more;                                                \
        va_start(more, flags);                                       \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;    \
        va_end(more);                                                \
        return full() ? -1 : REAL(name)(path, flags, mode);          \
    }

OPEN(open)
OPEN(open64)

int accept4(int listening, struct sockaddr *address, socklen_t *size, int flags)
{
    return full() ? -1 : REAL(accept4)(listening, address, size, flags);
}

int socket(int family, int type, int protocol)
{
    return full() ? -1 : REAL(socket)(family, type, protocol);
}

int socketpair(int family, int type, int protocol, int ends[2])
{
    return full() ? -1 : REAL(socketpair)(family, type, protocol, ends);
}

int pipe2(int ends[2], int flags)
{
    return full() ? -1 : REAL(pipe2)(ends, flags);
}
