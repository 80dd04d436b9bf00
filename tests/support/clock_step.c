/*
 * Moves the wall clock of a process, and of all that it starts, while it runs.
 *
 * Preloaded (LD_PRELOAD). The file that HANSA_TEST_CLOCK names holds how many seconds the clock is ahead, as eight
 * bytes; it is mapped, so that a step is there at once. The monotonic clock is left alone. A wait until a moment of
 * the wall clock lasts as long as it would have without us: the kernel knows the true time only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Seconds of a monotonic clock are far below this, seconds since 1970 far above. */
#define OF_THE_WALL 1000000000

static const int64_t none = 0;
static const volatile int64_t *ahead = &none;

typedef int (*gettime_t)(clockid_t, struct timespec *);
typedef int (*cond_wait_t)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
typedef int (*sem_wait_t)(sem_t *, const struct timespec *);
typedef long (*syscall_t)(long, ...);

__attribute__((constructor)) static void map_clock(void)
{
    const char *name = getenv("HANSA_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        ahead = found;
}

static struct timespec truly(const struct timespec *wall)
{
    struct timespec moment = *wall;
    if (moment.tv_sec > OF_THE_WALL)
        moment.tv_sec -= *ahead;
    return moment;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static gettime_t real;
    if (!real)
        real = (gettime_t)dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec moment;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &moment))
        return -1;
    now->tv_sec = moment.tv_sec;
    now->tv_usec = moment.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec moment;
    if (clock_gettime(CLOCK_REALTIME, &moment))
        return -1;
    if (now)
        *now = moment.tv_sec;
    return moment.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static cond_wait_t real;
    /* The version is named: without it an older one of the same name is found. */
    if (!real)
        real = (cond_wait_t)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec moment = truly(until);
    return real(cond, mutex, &moment);
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until)
{
    static sem_wait_t real;
    if (!real)
        real = (sem_wait_t)dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec moment = truly(until);
    return real(sem, &moment);
}

/* Some libraries wait by the system call. */
long syscall(long number, ...)
{
    static syscall_t real;
    long words[6];
    struct timespec moment;
    va_list given;

    if (!real)
        real = (syscall_t)dlsym(RTLD_NEXT, "syscall");
    va_start(given, number);
    for (int place = 0; place < 6; place++)
        words[place] = va_arg(given, long);
    va_end(given);
    if (number == SYS_futex && (words[1] & FUTEX_CLOCK_REALTIME) && words[3]) {
        moment = truly((const struct timespec *)words[3]);
        words[3] = (long)&moment;
    }
    return real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
