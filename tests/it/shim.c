// A bad disk and a wrong clock for the real binary: stands between the program and its C library (LD_PRELOAD).
//
// A test writes what is to go wrong into a shared page (struct control; `shim.rs` knows the same layout), at any time.
// Only files below SHIM_ROOT are touched. It can fail calls, delay syncs, kill the process at a named call, and shift the
// wall clock. With SHIM_UNDO it notes in that file what each call changes before it does, and what each sync has made
// durable, so that a test can take back what a power cut would have lost. Linux, glibc, 64 bits.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum call { WRITE = 1, SYNC, RENAME, REMOVE, ALLOCATE, SYNC_DIR };
enum moment { BEFORE = 1, HALF, AFTER };

struct control {
    int64_t clock_offset_ms;
    int64_t sync_delay_ms;
    int32_t write_errno;
    int32_t sync_errno;
    int32_t change_errno; // names: create, rename, remove; and lengths
    int32_t allocate_errno;
    int32_t crash_call;
    int32_t crash_moment;
    int32_t crash_after; // so many matching calls first
    int32_t padding;
    char crash_name[64]; // part of the file's name
    uint64_t steps;      // notes so far, over all processes
};

static volatile struct control *control;
static char root[PATH_MAX];
static size_t root_length;
static int undo = -1;
static char kept[PATH_MAX]; // directory that keeps removed files
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *page = getenv("SHIM_CONTROL"), *below = getenv("SHIM_ROOT"), *notes = getenv("SHIM_UNDO");
    if (!page || !below) return;
    snprintf(root, sizeof root, "%s", below);
    root_length = strlen(root);
    int file = (int)syscall(SYS_openat, AT_FDCWD, page, O_RDWR | O_CLOEXEC, 0);
    void *memory = file < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) abort();
    if (notes) {
        undo = (int)syscall(SYS_openat, AT_FDCWD, notes, O_RDWR | O_APPEND | O_CLOEXEC, 0);
        if (undo < 0) abort();
        snprintf(kept, sizeof kept, "%s.kept", notes);
    }
    control = memory;
}

static int is_below(const char *path) { return root_length && strncmp(path, root, root_length) == 0; }

// Path of a descriptor, if it is a file or directory below the root.
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int watches(void) {
    return control && (undo >= 0 || control->write_errno || control->sync_errno || control->change_errno ||
                       control->allocate_errno || control->sync_delay_ms || control->crash_call);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// Whether the process is to die in this call; counts calls down.
static int dies(int call, const char *path, int moment) {
    if (control->crash_call != call || control->crash_moment != moment) return 0;
    const char *name = strrchr(path, '/');
    if (!strstr(name ? name + 1 : path, (const char *)control->crash_name)) return 0;
    return __sync_fetch_and_sub(&control->crash_after, 1) == 0;
}

// One note: a head and its parts. Written in one call: of a kill's victim only the last one can be a part.
struct note {
    uint32_t kind, path, other, padding;
    uint64_t inode, offset, length, before, data;
};
enum kind { BYTES = 1, LENGTH, SYNCED, CREATED, RENAMED, REMOVED, DIR_SYNCED };

static void put(struct note note, const char *path, const char *other, const void *data) {
    size_t bytes = sizeof note + (note.path = strlen(path)) + (note.other = strlen(other)) + note.data;
    char *whole = malloc(bytes), *at = whole;
    if (!whole) abort();
    memcpy(at, &note, sizeof note), at += sizeof note;
    memcpy(at, path, note.path), at += note.path;
    memcpy(at, other, note.other), at += note.other;
    if (note.data) memcpy(at, data, note.data);
    if (syscall(SYS_write, undo, whole, bytes) != (long)bytes) abort();
    free(whole);
    control->steps++;
}

static void note_bytes(int fd, const char *path, uint64_t offset, uint64_t length, int kind) {
    struct stat stat;
    if (fstat(fd, &stat)) return;
    uint64_t have = (uint64_t)stat.st_size > offset ? stat.st_size - offset : 0;
    uint64_t wanted = kind == BYTES && have > length ? length : have;
    char *old = malloc(wanted + 1);
    // A descriptor that can't read has no old bytes worth keeping: new files only.
    long got = wanted ? syscall(SYS_pread64, fd, old, wanted, offset) : 0;
    struct note note = {.kind = kind, .inode = stat.st_ino, .offset = offset, .length = length};
    note.before = stat.st_size;
    note.data = got > 0 ? got : 0;
    put(note, path, "", old);
    free(old);
}

static void note_name(int kind, const char *path, const char *other, const char *victim) {
    char copy[PATH_MAX + 32] = "";
    struct stat stat;
    if (victim && !lstat(victim, &stat)) {
        snprintf(copy, sizeof copy, "%s/%llu", kept, (unsigned long long)control->steps);
        if (syscall(SYS_linkat, AT_FDCWD, victim, AT_FDCWD, copy, 0)) copy[0] = 0;
    }
    put((struct note){.kind = kind, .data = strlen(copy)}, path, other, copy);
}

static ssize_t write_to(int fd, const void *bytes, size_t length, int64_t offset, int *handled) {
    char path[PATH_MAX];
    *handled = 0;
    if (!watches() || !path_of(fd, path)) return 0;
    if (control->write_errno) {
        *handled = 1;
        errno = control->write_errno;
        return -1;
    }
    if (dies(WRITE, path, BEFORE)) die();
    int half = dies(WRITE, path, HALF), after = dies(WRITE, path, AFTER);
    if (undo < 0 && !half && !after) return 0;
    *handled = 1;
    pthread_mutex_lock(&lock);
    if (offset < 0) offset = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    int moves = offset >= 0 && (fcntl(fd, F_GETFL) & O_APPEND) == 0;
    if (undo >= 0) note_bytes(fd, path, offset, length, BYTES);
    long done = moves ? syscall(SYS_pwrite64, fd, bytes, half ? length / 2 : length, offset)
                      : syscall(SYS_write, fd, bytes, half ? length / 2 : length);
    pthread_mutex_unlock(&lock);
    if (half || after) die();
    return done < 0 ? -1 : done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    int handled;
    ssize_t done = write_to(fd, bytes, length, offset, &handled);
    if (handled) return done;
    REAL(pwrite64);
    return real(fd, bytes, length, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

ssize_t write(int fd, const void *bytes, size_t length) {
    int handled;
    ssize_t done = write_to(fd, bytes, length, -1, &handled);
    if (handled) {
        if (done > 0) syscall(SYS_lseek, fd, done, SEEK_CUR);
        return done;
    }
    REAL(write);
    return real(fd, bytes, length);
}

static int sync_of(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    struct stat stat;
    if (!watches() || !path_of(fd, path) || fstat(fd, &stat)) return real(fd);
    int is_dir = S_ISDIR(stat.st_mode), call = is_dir ? SYNC_DIR : SYNC;
    if (control->sync_delay_ms) usleep(control->sync_delay_ms * 1000);
    if (control->sync_errno) {
        errno = control->sync_errno;
        return -1;
    }
    if (dies(call, path, BEFORE)) die();
    int after = dies(call, path, AFTER);
    uint64_t until = control->steps;
    int result = real(fd);
    if (undo >= 0 && result == 0) {
        pthread_mutex_lock(&lock);
        struct note note = {.kind = is_dir ? DIR_SYNCED : SYNCED, .inode = stat.st_ino, .offset = until};
        put(note, path, "", NULL);
        pthread_mutex_unlock(&lock);
    }
    if (after) die();
    return result;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return sync_of(fd, real);
}

int fsync(int fd) {
    REAL(fsync);
    return sync_of(fd, real);
}

static int length_of(int fd, uint64_t length) {
    char path[PATH_MAX];
    if (!watches() || !path_of(fd, path)) return 0;
    if (control->change_errno) return control->change_errno;
    if (undo >= 0) {
        pthread_mutex_lock(&lock);
        note_bytes(fd, path, length, 0, LENGTH);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}

int ftruncate64(int fd, off64_t length) {
    int error = length_of(fd, length);
    if (error) {
        errno = error;
        return -1;
    }
    REAL(ftruncate64);
    return real(fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    char path[PATH_MAX];
    if (watches() && path_of(fd, path)) {
        if (control->allocate_errno) {
            errno = control->allocate_errno;
            return -1;
        }
        if (undo >= 0) {
            pthread_mutex_lock(&lock);
            note_bytes(fd, path, offset + length, 0, LENGTH);
            pthread_mutex_unlock(&lock);
        }
        if (dies(ALLOCATE, path, BEFORE)) die();
        int after = dies(ALLOCATE, path, AFTER);
        int result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
        if (after) die();
        return result;
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (writes && watches() && is_below(path)) {
        struct stat stat;
        int is_new = (flags & O_CREAT) && lstat(path, &stat);
        if (control->change_errno == EROFS || (is_new && control->change_errno)) {
            errno = control->change_errno;
            return -1;
        }
        if (undo >= 0 && (is_new || (flags & O_TRUNC))) {
            pthread_mutex_lock(&lock);
            if (is_new) note_name(CREATED, path, "", NULL);
            int old = is_new ? -1 : (int)syscall(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC, 0);
            if (old >= 0) note_bytes(old, path, 0, 0, LENGTH), close(old);
            pthread_mutex_unlock(&lock);
        }
    }
    return (int)syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
}

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = mode_of(flags, more); \
        va_end(more); \
        return open_at(AT_FDCWD, path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

static int name_fails(const char *path) {
    if (!watches() || !is_below(path) || !control->change_errno) return 0;
    errno = control->change_errno;
    return 1;
}

int rename(const char *from, const char *to) {
    int is_ours = watches() && is_below(to), after = 0;
    if (name_fails(to)) return -1;
    if (is_ours && dies(RENAME, to, BEFORE)) die();
    if (is_ours) after = dies(RENAME, to, AFTER);
    if (is_ours && undo >= 0) {
        pthread_mutex_lock(&lock);
        note_name(RENAMED, from, to, to);
        pthread_mutex_unlock(&lock);
    }
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (after) die();
    return result;
}

int unlink(const char *path) {
    int is_ours = watches() && is_below(path), after = 0;
    if (name_fails(path)) return -1;
    if (is_ours && dies(REMOVE, path, BEFORE)) die();
    if (is_ours) after = dies(REMOVE, path, AFTER);
    if (is_ours && undo >= 0) {
        pthread_mutex_lock(&lock);
        note_name(REMOVED, path, "", path);
        pthread_mutex_unlock(&lock);
    }
    int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (after) die();
    return result;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    int result = real(clock, time);
    int64_t offset = control ? control->clock_offset_ms : 0;
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t nanos = time->tv_nsec + offset % 1000 * 1000000;
        time->tv_sec += offset / 1000;
        if (nanos < 0) nanos += 1000000000, time->tv_sec -= 1;
        if (nanos >= 1000000000) nanos -= 1000000000, time->tv_sec += 1;
        time->tv_nsec = nanos;
    }
    return result;
}

int timespec_get(struct timespec *time, int base) {
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, time) == 0 ? base : 0;
}

time_t time(time_t *result) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

// Absolute times of the wall clock move with it, also of waits that have begun: as with a real jump, one back makes them
// longer. So they are waited for in slices. `slice` gets the end of the next one; whether the whole time is over.
static int next_slice(const struct timespec *until, struct timespec *slice) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left = (until->tv_sec - now.tv_sec) * 1000000000 + until->tv_nsec - now.tv_nsec;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, slice);
    slice->tv_nsec += left < 0 ? 0 : left > 50000000 ? 50000000 : left;
    if (slice->tv_nsec >= 1000000000) slice->tv_nsec -= 1000000000, slice->tv_sec += 1;
    return left <= 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) {
        // The oldest of this name is another function.
        void *found = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
        if (!found) found = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
        real = (__typeof__(real))found;
    }
    if (!control) return real(condition, mutex, until);
    for (;;) {
        struct timespec slice;
        int is_last = next_slice(until, &slice), result = real(condition, mutex, &slice);
        if (result != ETIMEDOUT || is_last) return result;
    }
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    REAL(cnd_timedwait);
    if (!control) return real(condition, mutex, until);
    for (;;) {
        struct timespec slice;
        int is_last = next_slice(until, &slice), result = real(condition, mutex, &slice);
        if (result != thrd_timedout || is_last) return result;
    }
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}
