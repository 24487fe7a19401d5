/* resize.c: changes of the size, of the fence and of the region; each is one step (mapping.3). */
#include "resize.h"

#include <errno.h>

#include "accounting.h"
#include "pin.h"

/* `from` is the first byte whose pages come and go; INT64_MAX ends that (mapping.3). */
static void set_moving(Mapping *self, int64_t from)
{
    self->moving = from;
    self->reach = from < self->size ? from : self->size;
}

static void set_size(Mapping *self, int64_t size)
{
    self->size = size;
    set_moving(self, self->moving);
    self->pages = pages_for(size);
    account_size(self);
}

void mapping_count_change(Mapping *self) { self->generation++; }

static size_t reserved(const Mapping *self) { return self->region ? self->region->length : 0; }

/* With the GIL: put the file back behind fenced pages, up to `end`. */
static bool lift_fence(Mapping *self, int64_t end)
{
    int64_t stop = page_up(end);
    if (self->fence >= stop)
        return true;
    size_t from = (size_t)self->fence, to = (size_t)stop;
    if (self->region && region_unfence(self->region, self->fd, from, to))
        return false;
    for (Lease *lease = self->leases; lease; lease = lease->next)
        if (lease->region && lease->region != self->region && !lease->region->growth &&
            region_unfence(lease->region, self->fd, from, to))
            return false;
    self->fence = stop;
    return true;
}

int64_t mapping_size(Mapping *self)
{
    int64_t grown = __atomic_load_n(&self->growth.grown, __ATOMIC_ACQUIRE);
    if (grown > self->size && !self->closed && self->moving == INT64_MAX && /* mapping.4 */
        lift_fence(self, grown)) {
        set_size(self, grown);
        self->growth_seen = true; /* not a change: what verbs have checked stays true */
    }
    return self->size;
}

bool mapping_reach(Mapping *self, int64_t end)
{
    mapping_size(self);
    if (self->moving != INT64_MAX || end > (int64_t)reserved(self) || self->fence < page_up(end))
        return false;
    if (end > self->size)
        set_size(self, end);
    return true;
}

PyObject *mapping_take_growth(Mapping *self, PyObject *Py_UNUSED(unused))
{
    mapping_size(self);
    bool seen = self->growth_seen;
    self->growth_seen = false;
    return PyBool_FromLong(seen);
}

/* A change while it is under way. */
struct change { /* the caller's own */
    struct pin pin;
    struct region **regions; /* references: all that get a fence when the file becomes shorter */
    size_t count;
};

/* Take every region of the file that somebody can still touch: the current one, and those that
 * leases kept when the mapping moved. Not the growable ones, which make the file longer again. */
static void take_regions(const Mapping *self, struct change *change)
{
    if (self->region)
        change->regions[change->count++] = self->region;
    for (const Lease *lease = self->leases; lease; lease = lease->next) {
        bool known = !lease->region || lease->region->growth;
        for (size_t i = 0; i < change->count && !known; i++)
            known = change->regions[i] == lease->region;
        if (!known)
            change->regions[change->count++] = lease->region;
    }
    for (size_t i = 0; i < change->count; i++)
        region_retain(change->regions[i]);
}

/* Begin a change of the bytes from `from` on; false with an exception. */
static bool change_begin(Mapping *self, struct change *change, int64_t from)
{
    *change = (struct change){0};
    if (!mapping_check(self))
        return false;
    if (self->moving != INT64_MAX) { /* mapping.4 */
        PyErr_SetString(PyExc_RuntimeError, "the size of this file is being changed already");
        return false;
    }
    change->regions = PyMem_Calloc((size_t)self->lease_count + 1, sizeof *change->regions);
    if (!change->regions) {
        PyErr_NoMemory();
        return false;
    }
    take_regions(self, change);
    set_moving(self, from);
    self->generation++;
    pin_begin(&change->pin, self);
    Py_BEGIN_ALLOW_THREADS /* wait for a pwrite(2) that was checked before; none begins */
    pthread_mutex_lock(&self->pwrite_mutex);
    pthread_mutex_unlock(&self->pwrite_mutex);
    Py_END_ALLOW_THREADS
    return true;
}

/* End a change, with the GIL again, after noting all that changed; returns the answer of the
 * verb. */
static PyObject *change_end(Mapping *self, struct change *change, int error)
{
    set_moving(self, INT64_MAX);
    self->generation++;
    for (size_t i = 0; i < change->count; i++)
        region_release(change->regions[i]);
    PyMem_Free(change->regions);
    pin_end(&change->pin);
    if (error)
        return os_error(error);
    if (!mapping_check(self))
        return NULL;
    Py_RETURN_NONE;
}

void mapping_wait_for_change(Mapping *self)
{
    while (self->moving != INT64_MAX && self->fork_generation == fork_generation) {
        struct pin pin;
        WITHOUT_GIL(pin, self, growth_wait(&self->growth););
    }
}

/* Without the GIL, from here on to the verbs. */

static int unfence(const struct change *change, int64_t from, int64_t end)
{
    int error = 0;
    for (size_t i = 0; i < change->count && !error; i++)
        error = region_unfence(change->regions[i], change->pin.fd, (size_t)from, (size_t)end);
    return error;
}

/* Lay a fence from the page at `from` on, if none begins before it. Where the kernel refuses the
 * fence, a load or store faults, and the handler lays zeros there (growth_leave). */
static void fence(const struct change *change, int64_t from, int64_t before)
{
    for (size_t i = 0; from < before && i < change->count; i++)
        region_fence(change->regions[i], (size_t)from);
}

/* Put the file back behind the pages of a fence, as far as the file reaches again. */
static int lift_to(const struct change *change, int64_t size, int64_t before)
{
    int error = before < page_up(size) ? unfence(change, before, page_up(size)) : 0;
    if (error)
        fence(change, before, INT64_MAX);
    return error;
}

/* The verbs, with the GIL. */

static bool check_size(const Mapping *self, int64_t size)
{
    if (size >= 0 && (uint64_t)size <= reserved(self) && !self->private_copy)
        return true;
    PyErr_Format(PyExc_ValueError, "size %lld leaves the reserved range", (long long)size);
    return false;
}

static void note_fence(Mapping *self, int64_t from)
{
    self->fence = from < (int64_t)reserved(self) ? from : INT64_MAX;
}

/* Note that the file ends here, whoever made it so. */
static void note_cut(Mapping *self, int64_t size)
{
    set_size(self, size);
    self->min_kept_length = size;
    if (page_up(size) < self->fence)
        note_fence(self, page_up(size));
}

PyObject *mapping_truncate(Mapping *self, PyObject *args)
{
    long long length;
    int error;
    struct change change;
    struct growth *growth = &self->growth;
    if (!PyArg_ParseTuple(args, "L:truncate", &length) || !mapping_check(self) ||
        !check_size(self, length) ||
        !change_begin(self, &change, length < self->size ? length : self->size))
        return NULL;
    int64_t before = self->fence;
    bool whole_pages = self->growable_leases > 0 && growth->fd >= 0, cut;
    /* Cut the file first: if that fails, nothing was touched, and no store went into a fence. */
    Py_BEGIN_ALLOW_THREADS
    error = growth_truncate(growth, change.pin.fd, length, whole_pages);
    cut = !error || __atomic_load_n(&growth->end, __ATOMIC_ACQUIRE) == length;
    if (cut)
        fence(&change, page_up(length), before);
    Py_END_ALLOW_THREADS
    if (cut)
        note_cut(self, length);
    return change_end(self, &change, error);
}

PyObject *mapping_extend(Mapping *self, PyObject *args)
{
    long long size, end, back, min_kept;
    struct change change;
    int error;
    if (!PyArg_ParseTuple(args, "LLLL:extend", &size, &end, &back, &min_kept) ||
        !mapping_check(self) || !check_size(self, size) ||
        !change_begin(self, &change, self->size))
        return NULL;
    int64_t before = self->fence;
    struct growth *growth = &self->growth;
    Py_BEGIN_ALLOW_THREADS
    error = growth_extend(growth, change.pin.fd, end);
    if (!error)
        error = lift_to(&change, size, before);
    if (error && __atomic_load_n(&growth->grown, __ATOMIC_ACQUIRE) <= back)
        growth_truncate(growth, change.pin.fd, back, false);
    Py_END_ALLOW_THREADS
    if (!error) {
        set_size(self, size > self->size ? size : self->size);
        self->min_kept_length = min_kept > self->min_kept_length ? min_kept : self->min_kept_length;
        if (before < page_up(size))
            note_fence(self, page_up(size));
    }
    return change_end(self, &change, error);
}

PyObject *mapping_adopt(Mapping *self, PyObject *args)
{
    long long size, end;
    int follow;
    int error = 0;
    struct change change;
    if (!PyArg_ParseTuple(args, "LLp:adopt", &size, &end, &follow) || !mapping_check(self) ||
        !check_size(self, size) ||
        !change_begin(self, &change, size < self->size ? size : self->size))
        return NULL;
    int64_t before = self->fence;
    bool shorter = size < self->size;
    Py_BEGIN_ALLOW_THREADS
    if (follow)
        growth_follow(&self->growth, size);
    if (shorter)
        fence(&change, page_up(size), before);
    if (end != __atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE))
        error = growth_extend(&self->growth, change.pin.fd, end);
    if (!error && !shorter)
        error = lift_to(&change, size, before);
    Py_END_ALLOW_THREADS
    if (shorter) {
        note_cut(self, size);
    } else if (!error) {
        set_size(self, size > self->size ? size : self->size);
        self->min_kept_length = size;
        if (before < page_up(size))
            note_fence(self, page_up(size));
    }
    return change_end(self, &change, error);
}

/* Move to a new, larger address range; leases keep the old one. */
PyObject *mapping_rebase(Mapping *self, PyObject *args)
{
    long long capacity;
    if (!PyArg_ParseTuple(args, "L:rebase", &capacity) || !mapping_check(self))
        return NULL;
    if (capacity < self->size || capacity > PTRDIFF_MAX - (long long)page_size() || self->private_copy)
        return PyErr_Format(PyExc_ValueError, "cannot rebase to %lld bytes", capacity);
    size_t pages = pages_for(capacity);
    if (!account_reserve(self, pages))
        return PyErr_NoMemory();
    struct region *region = NULL, *old = NULL, *quiet = NULL;
    struct region_options options = mapping_options(self);
    struct change change;
    int error;
    if (!change_begin(self, &change, self->size))
        return NULL;
    int64_t fence_at = self->fence;
    Py_BEGIN_ALLOW_THREADS
    error = region_map(&region, change.pin.fd, pages << page_shift, &options);
    if (!error && fence_at != INT64_MAX && (error = region_fence(region, (size_t)fence_at))) {
        region_unmap(region);
        region = NULL;
    }
    Py_END_ALLOW_THREADS
    if (region && !self->closed) {
        old = self->region;
        quiet = self->quiet;
        self->region = region;
        self->quiet = NULL; /* the next wait maps a longer one */
        region = NULL;
    }
    PyObject *answer = change_end(self, &change, error);
    region_release(old);
    region_release(quiet);
    region_release(region);
    return answer;
}
