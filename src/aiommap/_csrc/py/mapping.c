/* mapping.c: the Mapping type: making, closing and freeing one. */
#include "mapping.h"

#include <errno.h>
#include <structmember.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../sys/guard.h"

bool mapping_is_usable(const Mapping *self)
{
    return !self->closed && !self->declining && self->fork_generation == fork_generation &&
           !is_damaged(&self->damage);
}

bool mapping_check(const Mapping *self)
{
    if (!self->closed && self->fork_generation == fork_generation)
        return true;
    PyErr_SetString(PyExc_ValueError,
                    self->closed ? "the mapping is closed" : "the mapping is another process's");
    return false;
}

static bool check_range(const Mapping *self, int64_t offset, int64_t length, int64_t limit)
{
    if (!mapping_check(self))
        return false;
    if (range_is_valid(offset, length, limit))
        return true;
    struct native_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    PyObject *error = PyObject_CallFunction(state->out_of_bounds, "LLL", (long long)offset,
                                            (long long)length, (long long)limit);
    if (error)
        PyErr_SetObject(state->out_of_bounds, error);
    Py_XDECREF(error);
    return false;
}

bool mapping_range(const Mapping *self, int64_t offset, int64_t length)
{
    return check_range(self, offset, length, self->size);
}

enum meanwhile mapping_meanwhile(const Mapping *self, const struct pin *pin, int64_t offset,
                                 int64_t length)
{
    if (!pin->moved && self->moving == INT64_MAX)
        return RANGE_SAME;
    if (!check_range(self, offset, length, self->reach))
        return RANGE_GONE;
    return pin->moved ? RANGE_MOVED : RANGE_SAME;
}

void mapping_set_moving(Mapping *self, int64_t from)
{
    self->moving = from;
    self->reach = from < self->size ? from : self->size;
}

void mapping_set_size(Mapping *self, int64_t size)
{
    self->size = size;
    mapping_set_moving(self, self->moving);
    self->pages = pages_for(size);
    pages_remove(&self->dirty, self->pages, self->dirty.count);
    pages_remove(&self->ready, self->pages, self->ready.count);
    if (!self->dirty.members)
        self->dirty_since = 0;
}

bool parse_range(Mapping *self, PyObject *args, long long *offset, long long *length)
{
    return PyArg_ParseTuple(args, "LL", offset, length) && mapping_range(self, *offset, *length);
}

void object_free(void *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyObject *os_error(int number)
{
    errno = number;
    return PyErr_SetFromErrno(PyExc_OSError);
}

size_t pages_for(int64_t end) { return ((size_t)end + page_size() - 1) / page_size(); }

bool pages_of(int64_t offset, int64_t length, size_t *first, size_t *end)
{
    *first = (size_t)offset / page_size();
    *end = pages_for(offset + length);
    return length > 0;
}

struct region_options mapping_options(Mapping *self)
{
    return (struct region_options){.writable = self->writable,
                                   .private_copy = self->private_copy,
                                   .huge = self->huge,
                                   .damage = &self->damage,
                                   .file = self->private_copy ? NULL : &self->growth};
}

static int map_file(Mapping *self, int64_t capacity)
{
    if (capacity == 0)
        return 0; /* an empty file: mmap(2) refuses length 0, and nothing can be addressed */
    int error;
    size_t length = pages_for(capacity) * page_size();
    struct region_options options = mapping_options(self);
    Py_BEGIN_ALLOW_THREADS
    error = region_map(&self->region, self->fd, length, &options);
    Py_END_ALLOW_THREADS
    return error;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", "capacity", "writable", "private_copy", "huge",
                            "nowait", "in_memory", "residency_visible", "sparse", NULL};
    int fd, writable, private_copy, huge, nowait, in_memory, visible, sparse = false;
    long long size, capacity;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iLLpppppp|p:Mapping", names, &fd, &size,
                                     &capacity, &writable, &private_copy, &huge, &nowait,
                                     &in_memory, &visible, &sparse))
        return NULL;
    if (size < 0 || capacity < size || capacity > (int64_t)PTRDIFF_MAX - (int64_t)page_size()) {
        PyErr_SetString(PyExc_ValueError, "size and capacity must satisfy 0 <= size <= capacity");
        return NULL;
    }
    if (guard_install())
        return PyErr_SetFromErrno(PyExc_OSError);
    Mapping *self = (Mapping *)PyType_GenericAlloc(type, 0);
    if (!self) {
        guard_remove();
        return NULL;
    }
    self->fd = fd;
    self->fd_to_close = -1;
    self->size = self->min_kept_length = size;
    self->pages = pages_for(size);
    self->fence = INT64_MAX;
    mapping_set_moving(self, INT64_MAX);
    self->damage.first_bad = DAMAGE_NONE;
    self->growth = (struct growth){.fd = fd, .sparse = sparse, .end = size};
    self->writable = writable;
    self->private_copy = private_copy;
    int64_t kind;
    enum { OVERLAYFS = 0x794c7630 };
    self->layered = (!writable || private_copy) && !file_system_type(fd, &kind) && kind == OVERLAYFS;
    self->birth = self->layered ? file_birth(fd) : 0;
    self->huge = huge;
    self->nowait = nowait && !in_memory; /* pread(2) does not wait there, and tmpfs refuses */
    self->in_memory = in_memory;
    self->residency_visible = visible;
    self->inline_writes = writable;
    self->inline_limits = (struct inline_limits){NO_LIMIT, NO_LIMIT, NO_LIMIT};
    self->fork_generation = fork_generation;
    int error = map_file(self, capacity);
    if (!error && (!pages_reserve(&self->dirty, pages_for(capacity)) ||
                   !pages_reserve(&self->ready, pages_for(capacity))))
        error = ENOMEM;
    if (error) {
        self->fd = -1; /* the descriptor stays the caller's unless we return an object */
        Py_DECREF(self);
        return os_error(error);
    }
    return (PyObject *)self;
}

static PyObject *mapping_close(Mapping *self, PyObject *Py_UNUSED(unused))
{
    struct region *region = self->region, *growable = self->growable, *quiet = self->quiet;
    int fd = self->fd;
    if (self->fork_generation != fork_generation)
        forget_pins(self);
    self->closed = true;
    self->region = self->growable = self->quiet = NULL;
    self->fd = -1;
    self->generation++;
    if (fd >= 0) {
        Py_BEGIN_ALLOW_THREADS /* it waits for a change that is under way, and with it for a disk */
        growth_stop(&self->growth);
        Py_END_ALLOW_THREADS
    }
    region_release(region);
    region_release(growable);
    region_release(quiet);
    if (fd >= 0 && self->pins)
        self->fd_to_close = fd;
    else if (fd >= 0)
        descriptor_close(fd);
    Py_RETURN_NONE;
}

static PyObject *mapping_attach(Mapping *self, PyObject *args)
{
    PyObject *owner;
    PyTypeObject *type;
    if (!PyArg_ParseTuple(args, "OO!:attach", &owner, &PyType_Type, &type))
        return NULL;
    PyObject *old_owner = self->owner, *old_type = (PyObject *)self->receipt_type;
    self->owner = Py_NewRef(owner);
    self->receipt_type = (PyTypeObject *)Py_NewRef((PyObject *)type);
    self->loop_slice = thread_time_slice();
    Py_XDECREF(old_owner);
    Py_XDECREF(old_type);
    Py_RETURN_NONE;
}

static PyObject *mapping_bind_loop_thread(Mapping *self, PyObject *Py_UNUSED(unused))
{
    self->loop_slice = thread_time_slice();
    Py_RETURN_NONE;
}

static int mapping_traverse(Mapping *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->owner);
    Py_VISIT(self->receipt_type);
    return 0;
}

static int mapping_clear(Mapping *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->receipt_type);
    return 0;
}

static void mapping_dealloc(Mapping *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(mapping_close(self, NULL));
    mapping_clear(self);
    pages_free(&self->dirty);
    pages_free(&self->ready);
    PyMem_Free(self->locked.runs);
    guard_remove();
    object_free(self);
}

static PyObject *get_capacity(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->region ? self->region->length : 0);
}

static PyObject *get_address(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(self->region ? self->region->base : NULL);
}

static PyObject *get_current(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mapping_is_current(self));
}

static PyObject *get_forked(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->fork_generation != fork_generation);
}

static PyObject *get_leases(Mapping *self, void *Py_UNUSED(closure))
{
    /* Copied first: making Python objects can collect garbage, and with it the lease at hand. */
    Py_ssize_t count = 0, made = 0;
    struct { long long offset, end; PyObject *place; } *found;
    found = PyMem_Calloc((size_t)self->lease_count + 1, sizeof *found);
    if (!found)
        return PyErr_NoMemory();
    for (Lease *lease = self->leases; lease; lease = lease->next, count++) {
        found[count].offset = lease->offset;
        found[count].end = lease->offset + lease->length;
        found[count].place = Py_NewRef(lease->place);
    }
    PyObject *list = PyList_New(count), *item = list;
    for (; item && made < count; made++) {
        item = Py_BuildValue("LLO", found[made].offset, found[made].end, found[made].place);
        PyList_SetItem(list, made, item);
    }
    if (!item)
        Py_CLEAR(list);
    while (count)
        Py_DECREF(found[--count].place);
    PyMem_Free(found);
    return list;
}

static PyObject *get_size(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(mapping_size(self));
}

static PyObject *get_fenced(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->fence != INT64_MAX);
}

static PyObject *get_damage_errno(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(__atomic_load_n(&self->damage.error, __ATOMIC_SEQ_CST));
}

static PyObject *get_first_bad(Mapping *self, void *Py_UNUSED(closure))
{
    uint64_t offset = __atomic_load_n(&self->damage.first_bad, __ATOMIC_SEQ_CST);
    if (offset == DAMAGE_NONE)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(offset);
}

static PyObject *get_foreign_faults(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(__atomic_load_n(&self->damage.faults, __ATOMIC_RELAXED));
}

static PyObject *get_residency_visible(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(sees_residency(self));
}

static PyGetSetDef mapping_getset[] = {
    {"residency_visible", (getter)get_residency_visible, NULL, "Whether mincore(2) tells.", NULL},
    {"capacity", (getter)get_capacity, NULL, "Bytes of reserved address space.", NULL},
    {"address", (getter)get_address, NULL, "Where byte 0 is mapped.", NULL},
    {"current", (getter)get_current, NULL, "Whether the mapping shows what the file holds.", NULL},
    {"forked", (getter)get_forked, NULL, "Whether this is a forked child of the opener.", NULL},
    {"size", (getter)get_size, NULL, "Bytes of the file that verbs may address.", NULL},
    {"fenced", (getter)get_fenced, NULL, "Whether zeros lie over some of the pages.", NULL},
    {"damage_errno", (getter)get_damage_errno, NULL, "Why it faulted, an errno number.", NULL},
    {"file_end", (getter)mapping_get_file_end, NULL, "Where the file was made to end.", NULL},
    {"grown", (getter)mapping_get_grown, NULL, "Where a store made it end, or 0.", NULL},
    {"growing", (getter)mapping_get_growing, NULL, "Whether that is under way.", NULL},
    {"reserved_end", (getter)mapping_get_reserved_end, NULL, "Up to where it has blocks.", NULL},
    {"first_bad", (getter)get_first_bad, NULL, "Where a foreign load or store faulted.", NULL},
    {"foreign_faults", (getter)get_foreign_faults, NULL, "How many of them did.", NULL},
    {"leases", (getter)get_leases, NULL, "Offset, end and place of the live leases.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define FIELD(name, kind, flags) {#name, kind, offsetof(Mapping, name), flags, NULL}
#define COUNTER(name) {#name, T_ULONGLONG, offsetof(Mapping, counters.name), READONLY, NULL}
static PyMemberDef mapping_members[] = {
    FIELD(fd, T_INT, READONLY),
    FIELD(min_kept_length, T_LONGLONG, 0),
    FIELD(growable_leases, T_PYSSIZET, READONLY),
    FIELD(closed, T_BOOL, READONLY),
    FIELD(nowait, T_BOOL, READONLY),
    FIELD(in_memory, T_BOOL, READONLY),
    FIELD(inline_writes, T_BOOL, 0),
    FIELD(cut_suspected, T_BOOL, 0),
    FIELD(declining, T_BOOL, 0),
    FIELD(generation, T_ULONGLONG, READONLY),
    FIELD(sequence, T_ULONGLONG, READONLY),
    FIELD(durable_sequence, T_ULONGLONG, 0),
    FIELD(written_bytes, T_ULONGLONG, READONLY),
    FIELD(lease_count, T_PYSSIZET, READONLY),
    FIELD(writable_leases, T_PYSSIZET, READONLY),
    FIELD(ended_leases, T_ULONGLONG, READONLY),
    FIELD(dirty_since, T_LONGLONG, READONLY),
    FIELD(writeback_since, T_LONGLONG, READONLY),
    COUNTER(inline_reads),
    COUNTER(fell_back_reads),
    COUNTER(fell_back_writes),
    COUNTER(inline_writes_done),
    COUNTER(faults),
    {NULL, 0, 0, 0, NULL},
};

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}
#define ARGS(name, function) {name, (PyCFunction)function, METH_VARARGS, NULL}
#define NONE(name, function) {name, (PyCFunction)function, METH_NOARGS, NULL}
#define ONE(name, function) {name, (PyCFunction)function, METH_O, NULL}
static PyMethodDef mapping_methods[] = { /* documented in _native.pyi */
    FAST("read_inline", mapping_read_inline),
    FAST("read_into_inline", mapping_read_into_inline),
    FAST("read_nowait", mapping_read_nowait),
    FAST("write_inline", mapping_write_inline),
    FAST("write_now", mapping_write_now),
    FAST("stage", mapping_stage),
    ARGS("read", mapping_read),
    ARGS("read_into", mapping_read_into),
    ONE("write_many", mapping_write_many),
    ONE("commit", mapping_commit),
    ARGS("sync", mapping_sync),
    NONE("stat", mapping_stat),
    ARGS("sync_range", mapping_sync_range),
    ARGS("start_writeback", mapping_start_writeback),
    ARGS("read_ahead", mapping_read_ahead),
    ARGS("punch_hole", mapping_punch_hole),
    ARGS("populate", mapping_populate),
    ARGS("advise", mapping_advise),
    ARGS("lock", mapping_lock),
    ARGS("lock_later", mapping_lock_later),
    ARGS("unlock", mapping_unlock),
    ARGS("residency", mapping_residency),
    ARGS("cachestat", mapping_cachestat),
    ARGS("flush_begin", mapping_flush_begin),
    ONE("flush_end", mapping_flush_end),
    NONE("dirty_runs", mapping_dirty_runs),
    NONE("dirty_bytes", mapping_dirty_bytes),
    ARGS("would_dirty", mapping_would_dirty),
    ARGS("set_inline_limits", mapping_set_inline_limits),
    ARGS("set_queued", mapping_set_queued),
    ONE("set_locked", mapping_set_locked),
    ARGS("rebase", mapping_rebase),
    ARGS("truncate", mapping_truncate),
    ARGS("extend", mapping_extend),
    ARGS("adopt", mapping_adopt),
    ARGS("lease", mapping_lease),
    ARGS("lease_growable", mapping_lease_growable),
    NONE("take_growth", mapping_take_growth),
    NONE("stop_growth", mapping_stop_growth),
    ARGS("attach", mapping_attach),
    NONE("bind_loop_thread", mapping_bind_loop_thread),
    NONE("close", mapping_close),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_new, mapping_new},           {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_traverse, mapping_traverse}, {Py_tp_clear, mapping_clear},
    {Py_tp_methods, mapping_methods},   {Py_tp_members, mapping_members},
    {Py_tp_getset, mapping_getset},     {0, NULL},
};

PyType_Spec mapping_spec = {
    .name = "aiommap._native.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};
