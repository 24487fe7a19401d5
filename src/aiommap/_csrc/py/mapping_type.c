/* mapping_type.c: the type Mapping: making, closing and freeing one; its attributes and methods. */
#include "mapping_type.h"

#include <errno.h>
#include <structmember.h>

#include "accounting.h"
#include "append.h"
#include "blocking.h"
#include "commit.h"
#include "flush.h"
#include "gather.h"
#include "growable.h"
#include "inline.h"
#include "inline_write.h"
#include "lease.h"
#include "paging.h"
#include "pin.h"
#include "resize.h"
#include "write.h"

#include "../sys/guard.h"

static int map_file(Mapping *self, int64_t capacity)
{
    if (capacity == 0)
        return 0; /* an empty file: mmap(2) refuses length 0, and no verb can address anything */
    int error;
    size_t length = pages_for(capacity) << page_shift;
    struct region_options options = mapping_options(self);
    Py_BEGIN_ALLOW_THREADS
    error = region_map(&self->region, self->fd, length, &options);
    Py_END_ALLOW_THREADS
    return error;
}

static bool is_layered(int fd)
{
    enum { OVERLAYFS = 0x794c7630 };
    int64_t type;
    return !file_system_type(fd, &type) && type == OVERLAYFS;
}

/* The first value of every field that is not zero. */
static void fill_in(Mapping *self, int fd, int64_t size, int flags)
{
    self->writable = flags & MAPPING_WRITABLE;
    self->private_copy = flags & MAPPING_PRIVATE_COPY;
    self->huge = flags & MAPPING_HUGE;
    self->in_memory = flags & MAPPING_IN_MEMORY;
    self->local = flags & MAPPING_LOCAL;
    self->stable_pages = flags & MAPPING_STABLE_PAGES;
    self->residency_visible = flags & MAPPING_RESIDENCY_VISIBLE;
    self->layered = (!self->writable || self->private_copy) && is_layered(fd);
    self->birth = self->layered ? file_birth(fd) : 0;
    self->fork_generation = fork_generation;
    self->fd = fd;
    self->append_fd = self->fds_to_close[0] = self->fds_to_close[1] = -1;
    self->inline_writes = self->writable;
    self->size = self->reach = self->min_kept_length = size;
    self->pages = pages_for(size);
    self->moving = self->fence = INT64_MAX;
    /* Where pread(2) does not wait, verbs use that: tmpfs refuses RWF_NOWAIT. */
    self->nowait = flags & MAPPING_NOWAIT && !self->in_memory;
    self->inline_limits = (struct inline_limits){NO_LIMIT, NO_LIMIT, NO_LIMIT};
    pthread_mutex_init(&self->pwrite_mutex, NULL);
    self->damage.first_bad = DAMAGE_NONE;
    self->growth = (struct growth){.fd = fd, .sparse = flags & MAPPING_SPARSE, .end = size};
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", "capacity", "flags", NULL};
    int fd, flags;
    long long size, capacity;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iLLi:Mapping", names, &fd, &size, &capacity,
                                     &flags))
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
    fill_in(self, fd, size, flags);
    int error = map_file(self, capacity);
    if (!error && !account_reserve(self, pages_for(capacity)))
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
    int fds[] = {self->fd, self->append_fd};
    if (self->fork_generation != fork_generation)
        forget_pins(self);
    self->closed = true;
    self->region = self->growable = self->quiet = NULL;
    self->fd = self->append_fd = -1;
    mapping_count_change(self);
    if (fds[0] >= 0) {
        Py_BEGIN_ALLOW_THREADS /* it may wait for a change that is under way, and so for a disk */
        growth_stop(&self->growth);
        Py_END_ALLOW_THREADS
    }
    region_release(region);
    region_release(growable);
    region_release(quiet);
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0 && self->pins)
            self->fds_to_close[i] = fds[i];
        else if (fds[i] >= 0)
            descriptor_close(fds[i]);
    Py_RETURN_NONE;
}

static PyObject *mapping_append_through(Mapping *self, PyObject *descriptor)
{
    int fd = PyObject_AsFileDescriptor(descriptor);
    if (fd < 0 || !mapping_check(self))
        return NULL;
    self->append_fd = fd;
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
    self->loop_slice = &thread_time_slice;
    Py_XDECREF(old_owner);
    Py_XDECREF(old_type);
    Py_RETURN_NONE;
}

static PyObject *mapping_bind_loop_thread(Mapping *self, PyObject *Py_UNUSED(unused))
{
    self->loop_slice = &thread_time_slice;
    Py_RETURN_NONE;
}

static int mapping_traverse(Mapping *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->owner);
    Py_VISIT(self->receipt_type);
    return gather_traverse(self, visit, arg);
}

static int mapping_clear(Mapping *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->receipt_type);
    gather_clear(self);
    return 0;
}

static void mapping_dealloc(Mapping *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(mapping_close(self, NULL));
    mapping_clear(self);
    account_free(self);
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

static PyObject *get_usable(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mapping_is_usable(self));
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
    return PyBool_FromLong(mapping_sees_residency(self));
}

static PyObject *get_reserved_end(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(self->growth.reserved);
}

static PyObject *get_file_end(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(__atomic_load_n(&self->growth.end, __ATOMIC_ACQUIRE));
}

static PyObject *get_grown(Mapping *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(__atomic_load_n(&self->growth.grown, __ATOMIC_ACQUIRE));
}

static PyObject *get_growing(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(__atomic_load_n(&self->growth.busy, __ATOMIC_ACQUIRE) != 0);
}

static PyGetSetDef mapping_getset[] = {
    {"residency_visible", (getter)get_residency_visible, NULL, "Whether mincore(2) tells.", NULL},
    {"capacity", (getter)get_capacity, NULL, "Bytes of reserved address space.", NULL},
    {"address", (getter)get_address, NULL, "Where byte 0 is mapped.", NULL},
    {"current", (getter)get_current, NULL, "Whether the mapping shows what the file holds.", NULL},
    {"forked", (getter)get_forked, NULL, "Whether this is a forked child of the opener.", NULL},
    {"usable", (getter)get_usable, NULL, "Whether inline verbs may touch it.", NULL},
    {"size", (getter)get_size, NULL, "Bytes of the file that verbs may address.", NULL},
    {"fenced", (getter)get_fenced, NULL, "Whether zeros lie over some of the pages.", NULL},
    {"damage_errno", (getter)get_damage_errno, NULL, "Why it faulted, an errno number.", NULL},
    {"file_end", (getter)get_file_end, NULL, "Where the file was made to end.", NULL},
    {"grown", (getter)get_grown, NULL, "Where a store made it end, or 0.", NULL},
    {"growing", (getter)get_growing, NULL, "Whether that is under way.", NULL},
    {"reserved_end", (getter)get_reserved_end, NULL, "Up to where it has blocks.", NULL},
    {"first_bad", (getter)get_first_bad, NULL, "Where a foreign load or store faulted.", NULL},
    {"foreign_faults", (getter)get_foreign_faults, NULL, "How many of them did.", NULL},
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
    FIELD(flush_expected, T_BOOL, 0),
    FIELD(remapping, T_BOOL, 0),
    FIELD(pwriting, T_BOOL, READONLY),
    {"gathered", T_PYSSIZET, offsetof(Mapping, gather.count), READONLY, NULL},
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
    COUNTER(inline_pwrites),
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
    ONE("expect_stores", mapping_expect_stores),
    FAST("gather", mapping_gather),
    NONE("store_gathered", mapping_store_gathered),
    ONE("withdraw", mapping_withdraw),
    ARGS("gathers", mapping_gathers),
    ARGS("read", mapping_read),
    ARGS("read_into", mapping_read_into),
    ONE("write_many", mapping_write_many),
    ARGS("begin_commit", mapping_begin_commit),
    ONE("append_through", mapping_append_through),
    ONE("append", mapping_append),
    ARGS("count_appended", mapping_count_appended),
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
    ARGS("begin_writeback", mapping_begin_writeback),
    ONE("end_writeback", mapping_end_writeback),
    ARGS("begin_flush", mapping_begin_flush),
    ONE("awaits_flush", mapping_awaits_flush),
    NONE("dirty_runs", mapping_dirty_runs),
    NONE("dirty_bytes", mapping_dirty_bytes),
    ARGS("would_dirty", mapping_would_dirty),
    ARGS("set_inline_limits", mapping_set_inline_limits),
    ARGS("set_queued", mapping_set_queued),
    ARGS("set_locked", mapping_set_locked),
    ARGS("rebase", mapping_rebase),
    ARGS("truncate", mapping_truncate),
    ARGS("extend", mapping_extend),
    ARGS("adopt", mapping_adopt),
    ARGS("lease", mapping_lease),
    ONE("oldest_leases", mapping_oldest_leases),
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
