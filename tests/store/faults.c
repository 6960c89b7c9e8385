/* A library to preload: one call of the system, or all from one on, fails for files below a folder.
 *
 *     cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 *     LD_PRELOAD=./faults.so FD3D_FAIL=FOLDER:CALL:NUMBER:ERRNO:LASTING:LOG python ...
 *
 * CALL is one of the names below, or "any"; NUMBER counts from 0, and -1 fails nothing. ERRNO 0 means a call that reads or
 * writes half of what it was asked for. LASTING 1 fails all later calls too. Each failure, or each call where NUMBER is -1,
 * is a line of the file LOG. faults_arm() does the same in a running process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], wanted[32], journal[PATH_MAX];
static size_t folder_length;
static long at = -1;
static int error, lasting;
static atomic_long calls, failures;

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void note(const char *call, const char *path, long number) {
    REAL(int, open64, const char *, int, ...);
    static ssize_t (*put)(int, const void *, size_t);
    static int (*end)(int);
    if (!put) put = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (!end) end = (int (*)(int))dlsym(RTLD_NEXT, "close");
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path + folder_length);
    int file = *journal ? real(journal, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    if (file < 0) return;
    if (put(file, line, length) < 0) abort();
    end(file);
}

/* Whether this call is to fail. */
static int fails(const char *call, const char *path) {
    if (!folder_length || strncmp(path, folder, folder_length)) return 0;
    if (path[folder_length] && path[folder_length] != '/') return 0;
    if (strcmp(wanted, "any") && strcmp(wanted, call)) return 0;
    int kept = errno;
    long number = atomic_fetch_add(&calls, 1);
    int now = at >= 0 && (number == at || (lasting && number > at));
    if (now) atomic_fetch_add(&failures, 1);
    if (now || at < 0) note(call, path, number);
    errno = now && error ? error : kept;
    return now;
}

static int fails_at(const char *call, int base, const char *path) {
    if (!folder_length) return 0;
    char whole[2 * PATH_MAX], link[64];
    if (path && *path == '/') return fails(call, path);
    snprintf(link, sizeof link, base == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", base);
    int kept = errno;
    ssize_t length = readlink(link, whole, PATH_MAX);
    errno = kept;
    if (length < 0) return 0;
    if (path && *path) snprintf(whole + length, PATH_MAX, "/%s", path);
    else whole[length] = 0;
    return fails(call, whole);
}

static int fails_on(const char *call, int file) { return fails_at(call, file, NULL); }

/* ---- by path */

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest); \
        return fails_at("open", AT_FDCWD, path) && error ? -1 : real(path, flags, mode); \
    }
OPEN(open) OPEN(open64)

#define OPENAT(name) \
    int name(int base, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest); \
        return fails_at("open", base, path) && error ? -1 : real(base, path, flags, mode); \
    }
OPENAT(openat) OPENAT(openat64)

#define CALL(result, bad, group, name, check, parameters, arguments) \
    result name parameters { \
        static result (*real) parameters; \
        if (!real) real = (result (*) parameters)dlsym(RTLD_NEXT, #name); \
        return check && error ? bad : real arguments; \
    }
#define BY_PATH(result, bad, group, name, parameters, arguments) \
    CALL(result, bad, group, name, fails_at(group, AT_FDCWD, path), parameters, arguments)
#define BY_BASE(result, bad, group, name, parameters, arguments) \
    CALL(result, bad, group, name, fails_at(group, base, path), parameters, arguments)
#define BY_FILE(result, bad, group, name, parameters, arguments) \
    CALL(result, bad, group, name, fails_on(group, file), parameters, arguments)

BY_PATH(FILE *, NULL, "open", fopen, (const char *path, const char *mode), (path, mode))
BY_PATH(FILE *, NULL, "open", fopen64, (const char *path, const char *mode), (path, mode))
BY_PATH(DIR *, NULL, "list", opendir, (const char *path), (path))
BY_PATH(int, -1, "stat", stat, (const char *path, struct stat *out), (path, out))
BY_PATH(int, -1, "stat", stat64, (const char *path, struct stat64 *out), (path, out))
BY_PATH(int, -1, "stat", lstat, (const char *path, struct stat *out), (path, out))
BY_PATH(int, -1, "stat", lstat64, (const char *path, struct stat64 *out), (path, out))
BY_BASE(int, -1, "stat", fstatat64, (int base, const char *path, struct stat64 *out, int flags), (base, path, out, flags))
BY_PATH(int, -1, "mkdir", mkdir, (const char *path, mode_t mode), (path, mode))
BY_BASE(int, -1, "mkdir", mkdirat, (int base, const char *path, mode_t mode), (base, path, mode))
BY_PATH(int, -1, "remove", unlink, (const char *path), (path))
BY_PATH(int, -1, "remove", rmdir, (const char *path), (path))
BY_BASE(int, -1, "remove", unlinkat, (int base, const char *path, int flags), (base, path, flags))
BY_PATH(int, -1, "rename", rename, (const char *path, const char *to), (path, to))
BY_BASE(int, -1, "rename", renameat, (int base, const char *path, int other, const char *to), (base, path, other, to))

/* ---- by descriptor */

BY_FILE(int, -1, "fsync", fsync, (int file), (file))
BY_FILE(int, -1, "fsync", fdatasync, (int file), (file))
BY_FILE(int, -1, "flock", flock, (int file, int how), (file, how))
BY_FILE(int, -1, "chmod", fchmod, (int file, mode_t mode), (file, mode))
BY_FILE(int, -1, "stat", fstat, (int file, struct stat *out), (file, out))
BY_FILE(int, -1, "stat", fstat64, (int file, struct stat64 *out), (file, out))
BY_FILE(DIR *, NULL, "list", fdopendir, (int file), (file))

#define MOVE(group, name, kind, parameters, arguments) \
    ssize_t name parameters { \
        static ssize_t (*real) parameters; \
        if (!real) real = (ssize_t (*) parameters)dlsym(RTLD_NEXT, #name); \
        if (fails_on(group, file)) { \
            if (error) return -1; \
            if (size > 1) size /= 2; \
        } \
        return real arguments; \
    }
MOVE("write", write, void, (int file, const void *data, size_t size), (file, data, size))
MOVE("write", pwrite64, void, (int file, const void *data, size_t size, off64_t where), (file, data, size, where))
MOVE("write", writev, void, (int file, const struct iovec *data, int size), (file, data, size))
MOVE("read", read, void, (int file, void *data, size_t size), (file, data, size))
MOVE("read", pread64, void, (int file, void *data, size_t size, off64_t where), (file, data, size, where))
MOVE("read", readv, void, (int file, const struct iovec *data, int size), (file, data, size))
MOVE("read", preadv64, void, (int file, const struct iovec *data, int size, off64_t where), (file, data, size, where))
MOVE("read", preadv64v2, void, (int file, const struct iovec *data, int size, off64_t where, int flags),
     (file, data, size, where, flags))

/* The file is closed whatever the answer, as Linux does. */
int close(int file) {
    REAL(int, close, int);
    int failed = fails_on("close", file) && error, number = errno, answer = real(file);
    if (!failed) return answer;
    errno = number;
    return -1;
}

/* ---- arming */

void faults_arm(const char *where, const char *call, long number, int code, int later, const char *log) {
    atomic_store(&calls, 0), atomic_store(&failures, 0);
    at = number, error = code, lasting = later;
    snprintf(wanted, sizeof wanted, "%s", call), snprintf(journal, sizeof journal, "%s", log);
    snprintf(folder, sizeof folder, "%s", where), folder_length = strlen(where);
}

long faults_calls(void) { return atomic_load(&calls); }
long faults_failures(void) { return atomic_load(&failures); }

__attribute__((constructor)) static void from_environment(void) {
    char place[PATH_MAX], call[32], log[PATH_MAX];
    long number;
    int code, later;
    const char *text = getenv("FD3D_FAIL");
    if (text && sscanf(text, "%4095[^:]:%31[^:]:%ld:%d:%d:%4095s", place, call, &number, &code, &later, log) == 6)
        faults_arm(place, call, number, code, later, log);
}
