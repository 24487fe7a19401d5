#include "survive.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>

#include "fault_table.h"
#include "forks.h"
#include "growth.h"
#include "per_thread.h"
#include "spare.h"

/* This many faults of one file get a page each. A later fault gets zeros over all that follows it,
 * because each page is a mapping of its own, and the kernel refuses mappings past vm.max_map_count. */
enum { SINGLE_PAGES = 64 };

/* One spare for laying zeros over the rest of a mapping, and one for laying them over its
 * beginning. */
enum { MIN_SPARES = 2 };

/* The page of a growable region that this thread last faulted at although it was there, or 0; and
 * the generation of growth at that moment. */
static PER_THREAD struct {
    uintptr_t page;
    uint64_t generation;
} retried;

/* The page that got its blocks when this thread last faulted, or 0; and the errno number to report
 * if the page faults again. */
static PER_THREAD struct {
    uintptr_t page;
    int reason;
} filled;

static bool map_zeros(const struct fault_mapping *mapping, uintptr_t start, uintptr_t end)
{
    /* SAFETY: [start, end) lies in a mapping of the fault table, which stays while the faulting
     * thread is in it (fault_table.1). So nothing of anybody else's is mapped over. */
    return mmap((void *)start, end - start, mapping->protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static void note_damage(struct damage *damage, uint64_t offset, int error)
{
    int unset = 0;
    uint64_t none = DAMAGE_NONE;
    /* SAFETY: the first fault wins, in whichever thread it happened. The reason goes in before the
     * place, so that a reader that sees the damage finds the reason. */
    __atomic_compare_exchange_n(&damage->error, &unset, error ? error : EFAULT, false,
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __atomic_compare_exchange_n(&damage->first_bad, &none, offset, false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
}

static bool map_page_or_rest(const struct fault_mapping *mapping, uintptr_t start, uintptr_t end,
                             bool alone)
{
    uintptr_t limit = mapping->base + mapping->length;
    return map_zeros(mapping, start, alone ? end : limit) ||
           map_zeros(mapping, start, alone ? limit : end);
}

/* Which process takes spares: 0 if none does, else 1 + its fork generation, because a forked child
 * inherits a turn that nobody ends. */
static unsigned long turn; /* atomic */

/* Wait for the turn, with all signals blocked: a handler that faults while this thread has the turn
 * would wait for ever. */
static void take_turn(sigset_t *mask)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, mask);
    unsigned long ours = fork_generation + 1, found = 0;
    while (!__atomic_compare_exchange_n(&turn, &found, ours, false, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
        if (found == ours) {
            sched_yield();
            found = 0;
        }
    }
}

static void end_turn(const sigset_t *mask)
{
    __atomic_store_n(&turn, 0, __ATOMIC_RELEASE);
    pthread_sigmask(SIG_SETMASK, mask, NULL);
}

/* At vm.max_map_count: give up spares until one more mapping is allowed. */
static bool lay_with_spares(const struct fault_mapping *mapping, uintptr_t start, bool poisoned)
{
    uintptr_t limit = mapping->base + mapping->length;
    bool done = false;
    while (!done && spare_give_up())
        done = map_zeros(mapping, start, limit);
    spare_keep();
    /* The zeros took a place for good, and the next fault needs one, too. The file is poisoned
     * anyhow, so lay zeros over all of its mapping: they take the places of all its parts. */
    if (done && poisoned && spare_count() < MIN_SPARES && spare_give_up()) {
        map_zeros(mapping, mapping->base, limit);
        spare_keep();
    }
    return done;
}

/* Lay zeros over the lost block or, after many faults, over all that follows it as well. Where the
 * kernel refuses one it may allow the other: a page takes up to two mappings more; the rest of a
 * mapping takes one, and more memory to account for. */
static bool lay_zeros(const struct fault_mapping *mapping, uintptr_t start, uintptr_t end, bool alone,
                      bool poisoned)
{
    /* Not while another thread has the turn: the place of the spare that it gave up belongs to
     * it. */
    if (!__atomic_load_n(&turn, __ATOMIC_RELAXED) && map_page_or_rest(mapping, start, end, alone))
        return true;
    sigset_t mask;
    take_turn(&mask);
    bool done = map_page_or_rest(mapping, start, end, alone) ||
                lay_with_spares(mapping, start, poisoned);
    end_turn(&mask);
    return done;
}

/* Whether a fault in a growable region just has to happen again; if not, *beyond and *error say
 * why. */
static bool has_grown(const struct fault_mapping *mapping, uintptr_t start, bool *beyond, int *error)
{
    uintptr_t before = retried.page;
    uint64_t generation;
    retried.page = 0;
    switch (growth_reach(mapping->growth, (int64_t)(start - mapping->base),
                         (int64_t)mapping->length, error, &generation)) {
    case GROWTH_AGAIN:
        return true;
    case GROWTH_THERE:
        retried.page = start;
        /* SAFETY: the same page faults again, and nothing has changed since: it cannot be read. */
        bool again = before == start && retried.generation == generation;
        retried.generation = generation;
        return !again;
    case GROWTH_BEYOND:
        *beyond = true;
        return false;
    default:
        return false;
    }
}

/* Whether a page within the file got its blocks just now, so that the fault has to happen again; if
 * not, *error says why the page is lost. This is done once for a page, which may be unreadable. */
static bool is_filled(const struct fault_mapping *mapping, uintptr_t start, size_t lost, int *error)
{
    uintptr_t before = filled.page;
    filled.page = 0;
    if (mapping->file && before == start)
        *error = filled.reason;
    if (!mapping->file || before == start)
        return false;
    int64_t offset = (int64_t)(start - mapping->base);
    *error = growth_fill(mapping->file, offset, (int64_t)lost, &filled.reason);
    if (!*error)
        filled.page = start;
    return !*error || *error == EAGAIN;
}

/* Whether a page lies behind the end that we gave the file ourselves: nothing of the file is lost
 * there. Then this lays zeros, under the lock, because whoever makes the file longer takes them
 * away again. */
static bool is_cut_off(const struct fault_mapping *mapping, uintptr_t start, uintptr_t end, bool *done)
{
    switch (growth_leave(mapping->file, (int64_t)(start - mapping->base))) {
    case GROWTH_AGAIN:
        return *done = true;
    case GROWTH_BEYOND:
        *done = lay_zeros(mapping, start, end, false, false);
        growth_return(mapping->file);
        return true;
    default:
        return false;
    }
}

bool survive_fault(uintptr_t address, size_t lost)
{
    struct fault_mapping mapping;
    if (!fault_table_find(address, &mapping))
        return false;
    int saved = errno, error = 0;
    /* Blocks of broken memory are aligned to their size; the mapping only to a page. */
    uintptr_t start = address - address % lost, end = start + lost;
    if (start < mapping.base)
        start = mapping.base;
    if (end > mapping.base + mapping.length)
        end = mapping.base + mapping.length;
    bool beyond = false, done = false;
    if (mapping.file && !mapping.growth && is_cut_off(&mapping, start, end, &done)) {
        errno = saved;
        return done;
    }
    done = mapping.growth && has_grown(&mapping, start, &beyond, &error);
    if (!done && !beyond && !error)
        done = is_filled(&mapping, start, lost, &error);
    if (!done && beyond) {
        done = lay_zeros(&mapping, start, end, false, false);
    } else if (!done) {
        note_damage(mapping.damage, start - mapping.base, error);
        uint64_t faults = __atomic_fetch_add(&mapping.damage->faults, 1, __ATOMIC_RELAXED);
        done = lay_zeros(&mapping, start, end, faults < SINGLE_PAGES, true);
    }
    errno = saved;
    return done;
}
