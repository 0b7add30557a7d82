/* Preloaded into a command: the n-th call of a kind on a file below a directory fails, and so do those after it, or ends the process.

   FAIL_UNDER: the directory. FAIL_CALL: write, sync, rename, open or any. FAIL_AT: from which call on, counted from 1.
   FAIL_ERRNO: the error, 0 to kill the process instead. The variables are read at every call, so that a forked process may set them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int calls;

static int is_below(const char *path) {
    const char *under = getenv("FAIL_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static int fails_path(const char *kind, const char *path) {
    const char *call = getenv("FAIL_CALL");
    if (!call || (strcmp(call, kind) && strcmp(call, "any")) || !is_below(path)) return 0;
    if (__sync_add_and_fetch(&calls, 1) < atoi(getenv("FAIL_AT"))) return 0;
    int error = atoi(getenv("FAIL_ERRNO"));
    if (error == 0) kill(getpid(), SIGKILL);
    errno = error;
    return 1;
}

static int fails_fd(const char *kind, int fd) {
    char link[64], path[PATH_MAX];
    if (!getenv("FAIL_CALL")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails_path(kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) { return fails_fd("write", fd) ? -1 : NEXT(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return fails_fd("write", fd) ? -1 : NEXT(pwrite)(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return fails_fd("write", fd) ? -1 : NEXT(pwrite64)(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return fails_fd("write", fd) ? -1 : NEXT(writev)(fd, parts, count); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return fails_fd("write", fd) ? -1 : NEXT(pwritev)(fd, parts, count, at); }
ssize_t sendfile(int out, int in, off_t *at, size_t size);
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return fails_fd("write", out) ? -1 : NEXT(sendfile)(out, in, at, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    return fails_fd("write", out) ? -1 : NEXT(copy_file_range)(in, from, out, to, size, flags);
}
int ftruncate(int fd, off_t size) { return fails_fd("write", fd) ? -1 : NEXT(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails_fd("write", fd) ? -1 : NEXT(ftruncate64)(fd, size); }
int fsync(int fd) { return fails_fd("sync", fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails_fd("sync", fd) ? -1 : NEXT(fdatasync)(fd); }
int rename(const char *from, const char *to) { return fails_path("rename", to) ? -1 : NEXT(rename)(from, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return fails_path("rename", to) ? -1 : NEXT(renameat2)(a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) { return fails_path("open", path) ? -1 : NEXT(mkdir)(path, mode); }

static int is_new(int flags) { return (flags & (O_CREAT | O_WRONLY | O_RDWR)) != 0; }

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...) {                         \
        va_list more;                                                    \
        va_start(more, flags);                                           \
        mode_t mode = va_arg(more, mode_t);                              \
        va_end(more);                                                    \
        if (is_new(flags) && fails_path("open", path)) return -1;        \
        return NEXT(name)(path, flags, mode);                            \
    }
OPEN(open)
OPEN(open64)
int openat(int directory, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    if (is_new(flags) && fails_path("open", path)) return -1;
    return NEXT(openat)(directory, path, flags, mode);
}
