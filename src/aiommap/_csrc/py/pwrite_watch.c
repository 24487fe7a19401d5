/* pwrite_watch.c: see pwrite_watch.h. */
#include "pwrite_watch.h"

#include "../sys/clock.h"
#include "../sys/thread_waits.h"

/* A pwrite(2) that took this long is slow, not counting a nanosecond for each byte. */
#define SLOW_PWRITE_NS INT64_C(250000)
/* After a slow one this many more are watched: a second slow one that slept, or spun for a lock,
 * tells that they wait. To watch takes 0.9 us, too much for each. */
#define SUSPECTED_PWRITES 8
/* A pwrite(2) that took this long is long; and how long the next ones are watched after it. A
 * second long one that slept tells that they wait, too. */
#define LONG_PWRITE_NS INT64_C(1000000)
#define WATCHED_NS INT64_C(2000000000)
/* For this long stores then go to a worker. They may wait for the inode's lock, which another
 * process holds, for a page that the kernel is writing, or at its limit for dirty pages: nothing
 * tells when that ends. */
#define BLOCKED_NS INT64_C(1000000000)

/* The next two run without the GIL. */

void pwrite_watch_begin(struct pwrite_watch *watch, int64_t now)
{
    watch->looks = watch->suspected || watch->watched;
    if (watch->looks) {
        watch->waits = thread_waits();
        watch->ran = thread_clock();
    }
    watch->begun = now;
}

void pwrite_watch_end(struct pwrite_watch *watch, size_t bytes)
{
    int64_t took = monotonic_clock() - watch->begun - (int64_t)bytes;
    bool slow = took >= SLOW_PWRITE_NS, is_long = took >= LONG_PWRITE_NS, slept, spun;
    if (slow && watch->looks) {
        slept = thread_waits() != watch->waits;
        spun = thread_clock() - watch->ran >= took / 2; /* or the host took the processor */
        watch->waited = watch->waited || (watch->suspected ? slept || spun : slept && is_long);
        watch->spun = watch->spun || spun;
        slow = slept || spun; /* else the thread lost the processor */
    }
    watch->was_long = watch->was_long || (slow && is_long);
    watch->suspected = slow ? SUSPECTED_PWRITES : watch->suspected - (watch->suspected > 0);
}

struct pwrite_watch pwrite_watch(const Mapping *self, int64_t now)
{
    return (struct pwrite_watch){.watched = now < self->watched_until,
                                 .suspected = self->suspected_pwrites};
}

void pwrite_watch_note(Mapping *self, const struct pwrite_watch *watch)
{
    self->suspected_pwrites = watch->suspected;
    if (watch->was_long)
        self->watched_until = monotonic_clock() + WATCHED_NS;
    if (watch->waited)
        self->blocked_until = monotonic_clock() + BLOCKED_NS;
}

struct lock_watch lock_watch(const Mapping *self, int64_t now)
{
    return (struct lock_watch){.looks = now < self->blocked_until,
                               .suspected = now < self->spun_until,
                               .held = now < self->held_until};
}

void lock_watch_spin(struct lock_watch *watch)
{
    watch->held = watch->held || watch->suspected;
    watch->suspected = watch->spun = true;
}

/* The loop thread stays away for as long as workers spin for the lock. */
void lock_watch_note(Mapping *self, const struct lock_watch *watch)
{
    if (!watch->spun)
        return;
    self->spun_until = self->blocked_until = monotonic_clock() + BLOCKED_NS;
    if (watch->held)
        self->held_until = self->spun_until;
}
