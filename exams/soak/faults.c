/* Preloaded into a training process: counts every call that changes something below one folder,
 * and at the N-th kills the process (half of a write's bytes done), fails, or raises a signal.
 *
 * It also keeps, in a shadow folder, what is on the disk for certain: a file's bytes as of its last
 * fsync (f-INODE) and a folder's names as of its own last fsync (d-INODE, lines "TYPE INODE NAME").
 * From these, faults.py makes what a power cut leaves. Inodes are pinned, so that none is reused.
 */
#define _GNU_SOURCE
#include <dirent.h>
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
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL, RAISE };

static char folder[PATH_MAX], shadow[PATH_MAX];
static size_t folder_length;
static long *counter; /* shared with the process that waits for us; NULL: not armed */
static long at, again;
static int action, value, log_fd = -1;
static __thread int busy; /* our own calls, and those within libc's, are not counted */

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* `value` is an errno for FAIL, a signal's number for RAISE. FAIL goes on for `more` calls after
 * the N-th (-1: for good); RAISE does it again `more` calls later. `shadow_folder` may be "". */
void faults_arm(const char *path, const char *shadow_folder, long *calls, int log, int what,
                long number, int with, long more)
{
    snprintf(folder, sizeof folder, "%s", path);
    snprintf(shadow, sizeof shadow, "%s", shadow_folder);
    folder_length = strlen(folder);
    log_fd = log, action = what, at = number, value = with, again = more;
    counter = calls;
}

static int inside(const char *path)
{
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* Where `path`, relative to the folder open as `dir`, lies; 0 if not below our folder. */
static int resolve(int dir, const char *path, char *out)
{
    char link[64];
    ssize_t length = 0;
    if (!counter || busy || !path) return 0;
    if (*path == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return inside(out);
    }
    if (dir == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX - 1)) return 0;
        length = (ssize_t)strlen(out);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        length = readlink(link, out, PATH_MAX - 1);
        if (length <= 0) return 0;
    }
    snprintf(out + length, (size_t)(PATH_MAX - length), *path ? "/%s" : "%s", path);
    return inside(out);
}

static int open_inside(int fd, char *out) { return fd != log_fd && resolve(fd, "", out); }

static _Noreturn void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int grows(const char *kind) { return !strstr("unlink rmdir rename close", kind); }

/* Count one call. Returns KILL when the caller shall die (half of a write done), FAIL when the
 * call shall fail (errno is set), else COUNT. */
static int event(const char *kind, const char *path)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s\n", kind, path + folder_length);
        if (real(log_fd, line, (size_t)length) < 0) die();
    }
    if (action == KILL && number == at) return KILL;
    if (action == RAISE && (number == at || (again && number == at + again))) kill(getpid(), value);
    if (action == FAIL && number >= at && (again < 0 || number <= at + again)) {
        int full = value == ENOSPC || value == EDQUOT; /* a full disk still removes and renames */
        if (full && !grows(kind)) return COUNT;
        errno = value;
        return FAIL;
    }
    return COUNT;
}

/* For calls that are done or not: 1 when the call shall fail. */
static int refused(const char *kind, const char *path)
{
    int what = event(kind, path);
    if (what == KILL) die();
    return what == FAIL;
}

/* ---- what is on the disk for certain ---- */

static void pin(int dir, const char *path)
{
    if (counter && *shadow) openat(dir, path, O_PATH | O_NOFOLLOW | O_CLOEXEC); /* kept open */
}

static void keep_bytes(int fd, const struct stat *facts)
{
    char name[PATH_MAX + 32], from[64], block[1 << 16];
    ssize_t length;
    snprintf(name, sizeof name, "%s/f-%lu", shadow, (unsigned long)facts->st_ino);
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    int in = open(from, O_RDONLY), out = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while ((length = read(in, block, sizeof block)) > 0)
        if (write(out, block, (size_t)length) != length) die();
    close(in);
    close(out);
}

static void keep_names(int fd, const struct stat *facts)
{
    char name[PATH_MAX + 32], from[64];
    struct dirent *entry;
    snprintf(name, sizeof name, "%s/d-%lu", shadow, (unsigned long)facts->st_ino);
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    DIR *names = opendir(from);
    FILE *out = fopen(name, "w");
    if (!names || !out) die();
    while ((entry = readdir(names)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            fprintf(out, "%c %lu %s\n", entry->d_type == DT_DIR ? 'd' : 'f',
                    (unsigned long)entry->d_ino, entry->d_name);
    fclose(out);
    closedir(names);
}

static void synced(int fd)
{
    struct stat facts;
    if (!*shadow || fstat(fd, &facts)) return;
    busy = 1;
    if (S_ISDIR(facts.st_mode)) keep_names(fd, &facts);
    else if (S_ISREG(facts.st_mode)) keep_bytes(fd, &facts);
    busy = 0;
}

/* ---- the calls ---- */

static int changes(int flags)
{
    return flags & (O_CREAT | O_TRUNC) || ((flags & O_ACCMODE) != O_RDONLY && !(flags & O_PATH));
}

static int opened(int dir, const char *path, int flags, mode_t mode)
{
    REAL(int, "openat", int, const char *, int, ...);
    char full[PATH_MAX];
    if (!changes(flags) || !resolve(dir, path, full)) return real(dir, path, flags, mode);
    if (refused("open", full)) return -1;
    int fd = real(dir, path, flags, mode);
    busy = 1;
    if (fd >= 0 && flags & O_CREAT) pin(dir, path);
    busy = 0;
    return fd;
}

#define OPEN(name, before, dir) \
    int name(before const char *path, int flags, ...) \
    { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened(dir, path, flags, mode); \
    }
#define NOTHING
#define DIRECTORY int dir,
OPEN(open, NOTHING, AT_FDCWD)
OPEN(open64, NOTHING, AT_FDCWD)
OPEN(openat, DIRECTORY, dir)
OPEN(openat64, DIRECTORY, dir)

static FILE *opened_stream(const char *name, const char *path, const char *mode)
{
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, name);
    char full[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !resolve(AT_FDCWD, path, full)) return real(path, mode);
    if (refused("open", full)) return NULL;
    FILE *stream = real(path, mode);
    busy = 1;
    if (stream) pin(AT_FDCWD, path);
    busy = 0;
    return stream;
}
FILE *fopen(const char *path, const char *mode) { return opened_stream("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return opened_stream("fopen64", path, mode); }

#define WRITE(name, arguments, types, call, half) \
    ssize_t name arguments \
    { \
        REAL(ssize_t, #name, types); \
        char full[PATH_MAX]; \
        if (!open_inside(fd, full)) return real call; \
        int what = event("write", full); \
        if (what == FAIL) return -1; \
        ssize_t done = what == KILL ? real half : real call; \
        if (what == KILL) die(); \
        return done; \
    }
#define TYPES(...) __VA_ARGS__
WRITE(write, (int fd, const void *data, size_t size), TYPES(int, const void *, size_t),
      (fd, data, size), (fd, data, size / 2))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t where),
      TYPES(int, const void *, size_t, off_t), (fd, data, size, where), (fd, data, size / 2, where))
WRITE(pwrite64, (int fd, const void *data, size_t size, off_t where),
      TYPES(int, const void *, size_t, off_t), (fd, data, size, where), (fd, data, size / 2, where))
WRITE(writev, (int fd, const struct iovec *parts, int count), TYPES(int, const struct iovec *, int),
      (fd, parts, count), (fd, parts, count / 2))

#define ONE_PATH(name, kind, arguments, types, call, dir, path) \
    int name arguments \
    { \
        REAL(int, #name, types); \
        char full[PATH_MAX]; \
        if (resolve(dir, path, full) && refused(kind, full)) return -1; \
        return real call; \
    }
ONE_PATH(unlink, "unlink", (const char *path), TYPES(const char *), (path), AT_FDCWD, path)
ONE_PATH(unlinkat, "unlink", (int dir, const char *path, int flags), TYPES(int, const char *, int),
         (dir, path, flags), dir, path)
ONE_PATH(rmdir, "rmdir", (const char *path), TYPES(const char *), (path), AT_FDCWD, path)
ONE_PATH(rename, "rename", (const char *from, const char *to), TYPES(const char *, const char *),
         (from, to), AT_FDCWD, to)
ONE_PATH(renameat, "rename", (int dir, const char *from, int other, const char *to),
         TYPES(int, const char *, int, const char *), (dir, from, other, to), other, to)
ONE_PATH(renameat2, "rename",
         (int dir, const char *from, int other, const char *to, unsigned flags),
         TYPES(int, const char *, int, const char *, unsigned), (dir, from, other, to, flags),
         other, to)

static int made(int dir, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    char full[PATH_MAX];
    int ours = resolve(dir, path, full);
    if (ours && refused("mkdir", full)) return -1;
    int result = real(dir, path, mode);
    if (ours && !result) {
        busy = 1;
        pin(dir, path);
        busy = 0;
    }
    return result;
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int dir, const char *path, mode_t mode) { return made(dir, path, mode); }

#define ONE_FILE(name, kind, arguments, types, call, after) \
    int name arguments \
    { \
        REAL(int, #name, types); \
        char full[PATH_MAX]; \
        int ours = open_inside(fd, full); \
        if (ours && refused(kind, full)) return -1; \
        int result = real call; \
        if (ours && !result) after; \
        return result; \
    }
ONE_FILE(fsync, "fsync", (int fd), int, (fd), synced(fd))
ONE_FILE(fdatasync, "fsync", (int fd), int, (fd), synced(fd))
ONE_FILE(ftruncate, "truncate", (int fd, off_t size), TYPES(int, off_t), (fd, size), (void)0)
ONE_FILE(ftruncate64, "truncate", (int fd, off_t size), TYPES(int, off_t), (fd, size), (void)0)

int close(int fd)
{
    REAL(int, "close", int);
    char full[PATH_MAX];
    int flags = counter && !busy ? fcntl(fd, F_GETFL) : -1;
    int ours = flags >= 0 && changes(flags) && open_inside(fd, full);
    if (ours && refused("close", full)) {
        int why = errno;
        real(fd);
        errno = why;
        return -1;
    }
    return real(fd);
}
