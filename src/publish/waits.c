// librdkafka waits until moments of the wall clock: set back by two hours, its threads sleep for two hours, and with
// them publishing (https://github.com/confluentinc/librdkafka/issues/2145). So its waits are taken here instead of in
// the C library, and last as long as they were meant to by the clock that nobody sets.
//
// Weak, for a librdkafka that was built with a `cnd_timedwait` of its own: then that one is used.

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <threads.h>
#include <time.h>

static const long SECOND = 1000000000;

__attribute__((weak)) int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
                                        const struct timespec *restrict until) {
    struct timespec wall, end;
    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += until->tv_sec - wall.tv_sec;
    end.tv_nsec += until->tv_nsec - wall.tv_nsec;
    while (end.tv_nsec < 0) end.tv_nsec += SECOND, end.tv_sec -= 1;
    while (end.tv_nsec >= SECOND) end.tv_nsec -= SECOND, end.tv_sec += 1;
    if (end.tv_sec < 0) end.tv_sec = 0;
    // glibc's own `cnd_timedwait` does the same with the two: they are the same objects by another name.
    int result = pthread_cond_clockwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, CLOCK_MONOTONIC, &end);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
