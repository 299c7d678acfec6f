/* A disk that fails and a clock that jumps, for one process and its children: loaded with LD_PRELOAD.

   S2NODE_FAULT names a file of one struct fault, which the experiment maps too and writes at any time.
   Calls that change files below S2NODE_FAULT_ROOT are counted while `kinds` is not 0; the `at`-th one, and
   with `lasting` every later one, does nothing and returns `error`. `shift_s` is added to the wall clock.

   cc -shared -fPIC -O2 -o fault.so fault.c -ldl
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, NAME = 8, FOLDER = 16, TRUNCATE = 32, REMOVE = 64 };

struct fault {
    int64_t kinds, at, error, lasting, calls, hits, shift_s;
    char first[256]; /* what the first failed call was about */
};

static struct fault *fault;
static const char *root;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("S2NODE_FAULT");
    root = getenv("S2NODE_FAULT_ROOT");
    int (*open_)(const char *, int, ...) = next("open");
    int fd = path && root ? open_(path, O_RDWR) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *fault, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) fault = map;
}

static int strikes(int kind, const char *path, const char *call) {
    if (!fault || !(fault->kinds & kind) || !path || strncmp(path, root, strlen(root))) return 0;
    int64_t number = __atomic_add_fetch(&fault->calls, 1, __ATOMIC_SEQ_CST);
    if (number != fault->at && !(fault->lasting && number > fault->at)) return 0;
    if (__atomic_add_fetch(&fault->hits, 1, __ATOMIC_SEQ_CST) == 1)
        snprintf(fault->first, sizeof fault->first, "%s %s", call, path + strlen(root));
    errno = (int)fault->error;
    return 1;
}

static int strikes_fd(int kind, int fd, const char *call) {
    char link[64], path[1024];
    if (!fault || !(fault->kinds & kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(kind, path, call);
}

#define OPENS(name)                                                                      \
    int name(const char *path, int flags, ...) {                                         \
        static int (*real)(const char *, int, ...);                                      \
        if (!real) real = next(#name);                                                   \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;          \
        va_end(rest);                                                                    \
        if ((flags & O_CREAT) && strikes(OPEN, path, "open")) return -1;                 \
        return real(path, flags, mode);                                                  \
    }
OPENS(open)
OPENS(open64)

#define WRAP(type, name, kind, test, formal, actual)                                     \
    type name formal {                                                                   \
        static type(*real) formal;                                                       \
        if (!real) real = next(#name);                                                   \
        if (test) return -1;                                                             \
        return real actual;                                                              \
    }
#define BY_FD(type, name, kind, formal, actual) WRAP(type, name, kind, strikes_fd(kind, fd, #name), formal, actual)
#define BY_PATH(type, name, kind, formal, actual) WRAP(type, name, kind, strikes(kind, path, #name), formal, actual)

BY_FD(ssize_t, write, WRITE, (int fd, const void *data, size_t count), (fd, data, count))
BY_FD(ssize_t, pwrite, WRITE, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
BY_FD(ssize_t, pwrite64, WRITE, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))
BY_FD(int, fsync, SYNC, (int fd), (fd))
BY_FD(int, fdatasync, SYNC, (int fd), (fd))
BY_FD(int, ftruncate, TRUNCATE, (int fd, off_t length), (fd, length))
BY_FD(int, ftruncate64, TRUNCATE, (int fd, off64_t length), (fd, length))
BY_PATH(int, rename, NAME, (const char *path, const char *to), (path, to))
BY_PATH(int, link, NAME, (const char *path, const char *to), (path, to))
BY_PATH(int, mkdir, FOLDER, (const char *path, mode_t mode), (path, mode))
BY_PATH(int, unlink, REMOVE, (const char *path), (path))

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = next("clock_gettime");
    int result = real(clock, now);
    if (!result && fault && clock == CLOCK_REALTIME) now->tv_sec += fault->shift_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = next("gettimeofday");
    int result = real(now, zone);
    if (!result && fault) now->tv_sec += fault->shift_s;
    return result;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
