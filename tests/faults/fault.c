/* A disk that fails, a clock that jumps and kills at exact moments, for one process and its children: loaded
   with LD_PRELOAD.

   S2NODE_FAULT names a file of one struct fault, which the experiment maps too and writes at any time.
   Calls that change files below S2NODE_FAULT_ROOT are counted while `kinds` is not 0; the `at`-th one, and
   with `lasting` every later one, does nothing and returns `error`. `shift_s` is added to the wall clock.

   cc -shared -fPIC -O2 -o fault.so fault.c -ldl
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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
    int64_t whom, after, job, worker, struck;
    char move[64]; /* the texts of a row of `event` from from_state on, one after another */
};

enum { NODE = 1, WORKER = 2 };

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

/* Whether a page holds the row. SQLite's record (fileformat2.html, 2.1) has the columns without anything in
   between: the job's number in one or two bytes, its time as a double of 1e9 to 2e9, and the texts. */
static int holds_move(const unsigned char *page, size_t size) {
    const unsigned char *end = page + size, *at = page;
    size_t length = strlen(fault->move);
    for (; (at = memmem(at, (size_t)(end - at), fault->move, length)); at++) {
        if (at - page < 10 || at[-8] != 0x41 || at[-7] >> 4 != 0xD) continue;
        if (at[-9] != (fault->job & 255)) continue;
        if (fault->job < 128 || at[-10] == fault->job >> 8) return 1;
    }
    return 0;
}

static int is_log(int fd) {
    char link[64], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 4 && !strncmp(path, root, strlen(root)) && !memcmp(path + length - 4, "-wal", 4);
}

/* The node leads the session and its group; whoever else comes here is its worker. */
static void strike(void) {
    pid_t node = getsid(0), worker = getpid() == node ? (pid_t)fault->worker : getpid();
    if (__atomic_exchange_n(&fault->struck, 1, __ATOMIC_SEQ_CST)) return;
    if (fault->whom == (NODE | WORKER)) kill(-node, SIGKILL);
    if (fault->whom == NODE) kill(node, SIGKILL);
    if (fault->whom == WORKER && worker > 0) kill(worker, SIGKILL);
}

/* How far this thread is with the transaction that holds the move. */
static __thread enum { ELSEWHERE, WRITTEN, SYNCED } stage;

static int met(int fd, const void *data, size_t count) {
    if (!fault || !fault->whom || fault->struck || !is_log(fd) || !holds_move(data, count)) return 0;
    if (!fault->after) strike();
    stage = WRITTEN;
    return 0;
}

static int met_sync(int fd) {
    if (stage == WRITTEN && is_log(fd)) stage = SYNCED;
    return 0;
}

static void met_unlock(int command, const struct flock *lock) {
    if (stage != SYNCED || command != F_SETLK || lock->l_type != F_UNLCK) return;
    stage = ELSEWHERE;
    if (fault->after) strike();
}

#define LOCKS(name)                                                                      \
    int name(int fd, int command, ...) {                                                 \
        static int (*real)(int, int, ...);                                               \
        if (!real) real = next(#name);                                                   \
        va_list rest;                                                                    \
        va_start(rest, command);                                                         \
        void *value = va_arg(rest, void *);                                              \
        va_end(rest);                                                                    \
        met_unlock(command, value);                                                      \
        return real(fd, command, value);                                                 \
    }
LOCKS(fcntl)
LOCKS(fcntl64)

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

#define WRITES(name, formal, actual) \
    WRAP(ssize_t, name, WRITE, met(fd, data, count) || strikes_fd(WRITE, fd, #name), formal, actual)
#define SYNCS(name) WRAP(int, name, SYNC, met_sync(fd) || strikes_fd(SYNC, fd, #name), (int fd), (fd))

WRITES(write, (int fd, const void *data, size_t count), (fd, data, count))
WRITES(pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
WRITES(pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))
SYNCS(fsync)
SYNCS(fdatasync)
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
