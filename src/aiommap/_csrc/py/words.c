/* words.c: atomic operations on words of a mapping.
 *
 * The steps of an operation: check that it is allowed and that the page is there, run the guarded
 * instruction, account for it. The thread holds the GIL throughout, unless it may have to wait for
 * the page. The policy, a Python object, raises the error for a forbidden operation and for a
 * fault, and is told when a store reaches the inline limits. An operation that succeeds below these
 * limits does not call it.
 */
#include "words.h"

#include <errno.h>

#include "accounting.h"
#include "pin.h"
#include "resize.h"

#include "../sys/clock.h"
#include "../sys/guard.h"

/* A word lies on one page. */
static size_t page_of(int64_t at) { return (size_t)at >> page_shift; }

static bool is_free(const Words *self, int64_t at, bool store)
{
    const Mapping *mapping = self->mapping;
    return mapping_is_usable(mapping) && range_is_valid(at, self->width, mapping->reach) &&
           (!store || (mapping->inline_writes && !mapping->gather.count /* gather.2 */ &&
                       !runs_overlap(at, at + self->width, mapping->queued_start,
                                     mapping->queued_end))); /* I9 */
}

bool words_allowed(const Words *self, int64_t at, bool store)
{
    Mapping *mapping = self->mapping;
    if (is_free(self, at, store))
        return true;
    do {
        mapping_wait_for_change(mapping); /* a change may be at work on the page (mapping.3) */
        PyObject *answer = PyObject_CallMethod(self->policy, "check", "LIO", (long long)at,
                                               self->width, store ? Py_True : Py_False);
        if (!answer)
            return false;
        Py_DECREF(answer);
        if (!mapping_range(mapping, at, self->width)) /* I3, whatever the policy says */
            return false;
    } while (!range_is_valid(at, self->width, mapping->reach));
    if (store && !mapping->writable) {
        PyErr_SetString(PyExc_ValueError, "the mapping is read-only");
        return false;
    }
    return true;
}

bool words_present(const Words *self, int64_t at, int64_t now)
{
    Mapping *mapping = self->mapping;
    account_refresh(mapping, now);
    if (page_is(mapping, page_of(at), PRESENCE_CACHED))
        return true;
    if (pages_are_locked(mapping, page_of(at), page_of(at) + 1))
        return true;
    return mapping_sees_residency(mapping) &&
           region_is_resident(mapping->region, (size_t)at, self->width);
}

static bool act(const struct region *region, int64_t at, struct word_call *call, int64_t now)
{
    /* SAFETY: words_allowed found [at, at + width) inside the mapping, whose region the caller
     * holds; base is page-aligned and `at` a multiple of width, so the word is aligned. */
    call->at = region->base + at;
    return guard_word(call, now);
}

/* Account for a store to a page that is ready and dirty already; false with an exception. */
static bool account_word(const Words *self, int64_t at)
{
    Mapping *mapping = self->mapping;
    account_bytes(mapping, at, self->width);
    account_write(mapping);
    const struct inline_limits *limits = &mapping->inline_limits;
    if (mapping->written_bytes < limits->bytes && mapping->sequence < limits->sequence)
        return true;
    PyObject *answer = PyObject_CallMethod(self->policy, "stored", NULL);
    Py_XDECREF(answer);
    return answer != NULL;
}

/* Account for an operation; false with an exception. */
static bool account(const Words *self, int64_t at, bool stored, int64_t now)
{
    Mapping *mapping = self->mapping;
    size_t page = page_of(at);
    if (account_present(mapping, page, page + 1, stored ? PRESENCE_READY : PRESENCE_CACHED) &&
        (!stored || account_dirty(mapping, page, page + 1, now)))
        return !stored || account_word(self, at);
    PyErr_NoMemory();
    return false;
}

/* Allocate blocks for the page of a word, in case it faulted for want of them; 0 or an errno
 * number. *reason is the errno number that a further fault means, or that says why there are no
 * blocks. */
static int fill(const Words *self, int64_t at, int *reason)
{
    Mapping *mapping = self->mapping;
    struct pin pin;
    int error = mapping->private_copy ? EFAULT : EAGAIN;
    while (error == EAGAIN)
        WITHOUT_GIL(pin, mapping, error = growth_fill(&mapping->growth, at, self->width, reason););
    if (error)
        *reason = error;
    return error;
}

static bool report_fault(const Words *self, int64_t at, int error)
{
    struct file_stat found;
    struct pin pin;
    int failed;
    self->mapping->counters.faults++;
    WITHOUT_GIL(pin, self->mapping, failed = file_stat(pin.fd, &found););
    long long size = failed ? -1 : (long long)found.size;
    PyObject *answer = PyObject_CallMethod(self->policy, "fault", "LLi", (long long)at, size, error);
    if (answer) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_SystemError, "a fault was not reported");
    }
    return false;
}

/* Whether an operation does not enter the kernel. There it may wait for a flush of ours now and
 * then, and in a frozen file system until that thaws. A store also enters the kernel if the kernel
 * has written the page back within the last second, and nothing tells that; letting the GIL go for
 * each store would make it take one and a half times as long (docs/decisions.md). With
 * inline_writes=False no store is trusted. */
static bool is_hot(const Words *self, int64_t at, bool store, int64_t now)
{
    Mapping *mapping = self->mapping;
    size_t page = page_of(at);
    account_refresh(mapping, now);
    if (!page_is(mapping, page, store ? PRESENCE_READY : PRESENCE_CACHED))
        return false;
    return !store || (mapping->inline_writes && pages_has(&mapping->dirty, page) &&
                      !runs_overlap(at, at + self->width, mapping->writeback_start,
                                    mapping->writeback_end));
}

static bool has_stored(const struct word_call *call)
{
    return call->operation != WORD_LOAD &&
           (call->operation != WORD_COMPARE || call->seen == call->expected);
}

/* The page may be absent, or the thread may have to wait for it. */
static __attribute__((noinline)) bool operate_cold(const Words *self, int64_t at,
                                                   struct word_call *call)
{
    Mapping *mapping = self->mapping;
    bool store = call->operation != WORD_LOAD, done, again, filled = false;
    int reason = EFAULT;
    int64_t now;
    do {
        struct pin pin;
        pin.moved = false;
        if (!words_allowed(self, at, store))
            return false;
        now = coarse_clock();
        if (store ? is_hot(self, at, store, now) : words_present(self, at, now))
            done = act(mapping->region, at, call, now);
        else
            WITHOUT_GIL(pin, mapping, done = act(pin.region, at, call, now););
        /* A store is never repeated. But if its page was cut off meanwhile, the store went
         * nowhere. */
        again = pin.moved && (!done || !store);
        if (pin.moved && !again && !mapping->closed &&
            !range_is_valid(at, self->width, mapping->reach) &&
            !words_allowed(self, at, false))
            return false;
        if (!done && !again && !filled) {
            filled = true;
            again = !fill(self, at, &reason);
        }
    } while (again);
    if (!done)
        return report_fault(self, at, reason);
    return account(self, at, has_stored(call), now);
}

bool words_operate(const Words *self, int64_t at, struct word_call *call)
{
    bool store = call->operation != WORD_LOAD;
    call->width = self->width;
    if (is_free(self, at, store)) {
        int64_t now = coarse_clock();
        if (is_hot(self, at, store, now) && act(self->mapping->region, at, call, now))
            return !has_stored(call) || account_word(self, at);
    }
    return operate_cold(self, at, call);
}
