/* module.c: the module aiommap._native; its contract is _native.pyi. */
#include <dlfcn.h>
#include <errno.h>
#include <sys/mman.h>

#include "api.h"
#include "append.h"
#include "blocks.h"
#include "buffer.h"
#include "futex.h"
#include "lease.h"
#include "log.h"
#include "log_gather.h"
#include "log_next.h"
#include "log_record.h"
#include "mapping.h"
#include "mapping_type.h"
#include "pool_commit.h"
#include "receipt.h"
#include "search.h"
#include "state.h"
#include "word_type.h"

#include "../sys/clock.h"
#include "../sys/guard.h"

static PyObject *time_slice_spent(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(time_slice_is_spent(&thread_time_slice, monotonic_clock()));
}

static PyObject *count_yield(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(time_slice_yield(&thread_time_slice));
}

static PyObject *time_slice_renew(PyObject *Py_UNUSED(module), PyObject *before)
{
    unsigned long long yields = PyLong_AsUnsignedLongLong(before);
    if (yields == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    time_slice_grant(&thread_time_slice, yields);
    guard_refresh(); /* so that inline copies trust the handler for one time slice at most */
    Py_RETURN_NONE;
}

static PyObject *time_slice_wake(PyObject *Py_UNUSED(module), PyObject *tasks)
{
    unsigned long long count = PyLong_AsUnsignedLongLong(tasks);
    if (PyErr_Occurred())
        return NULL;
    time_slice_grant_woken(&thread_time_slice, count);
    Py_RETURN_NONE;
}

static PyObject *sync_filesystem(PyObject *Py_UNUSED(module), PyObject *descriptor)
{
    int error, fd = PyObject_AsFileDescriptor(descriptor);
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = file_system_sync(fd);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

static PyObject *filesystem_type(PyObject *Py_UNUSED(module), PyObject *descriptor)
{
    int fd = PyObject_AsFileDescriptor(descriptor);
    int64_t type = 0;
    int error;
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = file_system_type(fd, &type);
    Py_END_ALLOW_THREADS
    return error ? os_error(error) : PyLong_FromLongLong(type);
}

static PyObject *read_file(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    long long offset, length;
    ssize_t got;
    if (!PyArg_ParseTuple(args, "iLL:read_file", &fd, &offset, &length))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!bytes)
        return NULL;
    /* SAFETY: nobody else knows the new object yet, so its bytes can be filled without the GIL. */
    char *to = PyBytes_AsString(bytes);
    Py_BEGIN_ALLOW_THREADS
    got = file_read(fd, to, (size_t)length, offset);
    Py_END_ALLOW_THREADS
    if (got < 0) {
        Py_DECREF(bytes);
        return os_error((int)-got);
    }
    if (got == length)
        return bytes;
    PyObject *part = PyBytes_FromStringAndSize(to, (Py_ssize_t)got);
    Py_DECREF(bytes);
    return part;
}

static PyObject *sigbus_blocked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(guard_is_blocked());
}

static PyObject *export_bytes(PyObject *module, PyObject *args)
{
    PyObject *data;
    int writable = 0;
    if (!PyArg_ParseTuple(args, "O|p:export_bytes", &data, &writable))
        return NULL;
    struct native_state *state = PyModule_GetState(module);
    return buffer_export(state->export_type, data, writable);
}

static PyMethodDef functions[] = { /* documented in _native.pyi */
    {"append_zeros_to", append_zeros_to_file, METH_VARARGS, NULL},
    {"filesystem_type", filesystem_type, METH_O, NULL},
    {"export_bytes", export_bytes, METH_VARARGS, NULL},
    {"find_bytes", find_bytes, METH_VARARGS, NULL},
    {"read_file", read_file, METH_VARARGS, NULL},
    {"sigbus_blocked", sigbus_blocked, METH_NOARGS, NULL},
    {"time_slice_spent", time_slice_spent, METH_NOARGS, NULL},
    {"time_slice_yield", count_yield, METH_NOARGS, NULL},
    {"time_slice_renew", time_slice_renew, METH_O, NULL},
    {"time_slice_wake", time_slice_wake, METH_O, NULL},
    {"sync_filesystem", sync_filesystem, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject *add_subtype(PyObject *module, PyType_Spec *spec, PyTypeObject *base)
{
    PyTypeObject *type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, (PyObject *)base);
    if (type && PyModule_AddType(module, type))
        Py_CLEAR(type);
    return type;
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    return add_subtype(module, spec, NULL);
}

static const struct {
    const char *name;
    long value;
} constants[] = {
    {"PIECE_BYTES", PIECE_BYTES},
    {"APPEND_PIECES", APPEND_PIECES},
    {"MAX_WAIT_WORDS", MAX_WAIT_WORDS},
    {"NO_LIMIT", NO_LIMIT},
    {"WRITABLE", MAPPING_WRITABLE},
    {"PRIVATE_COPY", MAPPING_PRIVATE_COPY},
    {"HUGE", MAPPING_HUGE},
    {"NOWAIT", MAPPING_NOWAIT},
    {"IN_MEMORY", MAPPING_IN_MEMORY},
    {"RESIDENCY_VISIBLE", MAPPING_RESIDENCY_VISIBLE},
    {"SPARSE", MAPPING_SPARSE},
    {"LOCAL", MAPPING_LOCAL},
    {"STABLE_PAGES", MAPPING_STABLE_PAGES},
    {"MADV_NORMAL", MADV_NORMAL},
    {"MADV_RANDOM", MADV_RANDOM},
    {"MADV_SEQUENTIAL", MADV_SEQUENTIAL},
    {"MADV_WILLNEED", MADV_WILLNEED},
    {"MADV_DONTNEED", MADV_DONTNEED},
#ifdef __linux__
    {"MADV_HUGEPAGE", 14},
    {"MADV_NOHUGEPAGE", 15},
    {"MADV_COLD", 20},
    {"MADV_PAGEOUT", 21},
#else
    {"MADV_HUGEPAGE", -1},
    {"MADV_NOHUGEPAGE", -1},
    {"MADV_COLD", -1},
    {"MADV_PAGEOUT", -1},
#endif
    {NULL, 0},
};

static int add_log(PyObject *module, struct native_state *state)
{
    state->log_record_type = add_type(module, &log_record_spec);
    state->log_next_type = add_type(module, &log_next_spec);
    state->log_cursor_type = add_type(module, &log_cursor_spec);
    state->log_writer_type = add_type(module, &log_writer_spec);
    state->log_receipt_type = add_type(module, &log_receipt_spec);
    state->log_wait_type = add_subtype(module, &log_wait_spec, state->awaited_type);
    state->log_gather_type = add_type(module, &log_gather_spec);
    if (!state->log_record_type || !state->log_next_type || !state->log_cursor_type ||
        !state->log_writer_type || !state->log_receipt_type || !state->log_wait_type ||
        !state->log_gather_type)
        return -1;
    return PyModule_AddFunctions(module, log_functions);
}

/* Load the library that glibc needs for ending a thread, as CPython ends those that are left at its
 * exit. If glibc cannot load it then, at the limit of mappings or descriptors or in a sandbox, it
 * aborts the process. The library stays loaded. Other C libraries do not need it, and may lack
 * it. */
static void load_what_ends_threads(void) { dlopen("libgcc_s.so.1", RTLD_NOW); }

static bool add_pool(PyObject *module, struct native_state *state)
{
    state->awaited_type = add_type(module, &awaited_spec);
    if (!state->awaited_type)
        return false;
    state->pool_type = add_type(module, &pool_spec);
    state->pool_queue_type = add_type(module, &pool_queue_spec);
    state->pool_read_type = add_subtype(module, &pool_read_spec, state->awaited_type);
    state->pool_commit_type = add_type(module, &pool_commit_spec);
    state->done = PyUnicode_InternFromString("done");
    state->set_result = PyUnicode_InternFromString("set_result");
    state->run = PyUnicode_InternFromString("run");
    return state->pool_type && state->pool_queue_type && state->pool_read_type &&
           state->pool_commit_type && state->done && state->set_result && state->run;
}

static int native_exec(PyObject *module)
{
    struct native_state *state = PyModule_GetState(module);
    /* A process has one SIGBUS action, so one interpreter owns it, the main one. */
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(PyExc_ImportError, "aiommap handles SIGBUS for the whole process and "
                                           "cannot be loaded in a subinterpreter: import it "
                                           "in the main one");
        return -1;
    }
    state->mapping_type = add_type(module, &mapping_spec);
    state->lease_type = add_type(module, &lease_spec);
    state->receipt_type = add_type(module, &receipt_spec);
    state->word_type = add_type(module, &word_spec);
    state->word_array_type = add_type(module, &word_array_spec);
    state->wakeup_type = add_type(module, &wakeup_spec);
    state->export_type = add_type(module, &export_spec);
    if (!state->mapping_type || !state->lease_type || !state->receipt_type || !state->word_type ||
        !state->word_array_type || !state->wakeup_type || !state->export_type)
        return -1;
    PyObject *errors = PyImport_ImportModule("aiommap._errors");
    state->out_of_bounds = errors ? PyObject_GetAttrString(errors, "OutOfBoundsError") : NULL;
    Py_XDECREF(errors);
    if (!state->out_of_bounds)
        return -1;
    if (!add_pool(module, state) || add_log(module, state))
        return -1;
    state->blocks_type = add_type(module, &blocks_spec);
    if (!state->blocks_type || PyModule_AddFunctions(module, block_functions))
        return -1;
    if (PyModule_AddIntConstant(module, "PAGE_SIZE", (long)page_size()))
        return -1;
    for (size_t i = 0; constants[i].name; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value))
            return -1;
    int error = forks_count();
    if (error)
        os_error(error);
    return error ? -1 : 0;
}

static int native_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct native_state *state = PyModule_GetState(module);
    Py_VISIT(state->mapping_type);
    Py_VISIT(state->lease_type);
    Py_VISIT(state->receipt_type);
    Py_VISIT(state->word_type);
    Py_VISIT(state->word_array_type);
    Py_VISIT(state->wakeup_type);
    Py_VISIT(state->log_record_type);
    Py_VISIT(state->log_next_type);
    Py_VISIT(state->log_cursor_type);
    Py_VISIT(state->log_writer_type);
    Py_VISIT(state->log_receipt_type);
    Py_VISIT(state->log_wait_type);
    Py_VISIT(state->log_gather_type);
    Py_VISIT(state->blocks_type);
    Py_VISIT(state->awaited_type);
    Py_VISIT(state->pool_type);
    Py_VISIT(state->pool_queue_type);
    Py_VISIT(state->pool_read_type);
    Py_VISIT(state->pool_commit_type);
    Py_VISIT(state->export_type);
    Py_VISIT(state->out_of_bounds);
    load_what_ends_threads();
    return 0;
}

static int native_clear(PyObject *module)
{
    struct native_state *state = PyModule_GetState(module);
    Py_CLEAR(state->mapping_type);
    Py_CLEAR(state->lease_type);
    Py_CLEAR(state->receipt_type);
    Py_CLEAR(state->word_type);
    Py_CLEAR(state->word_array_type);
    Py_CLEAR(state->wakeup_type);
    Py_CLEAR(state->log_record_type);
    Py_CLEAR(state->log_next_type);
    Py_CLEAR(state->log_cursor_type);
    Py_CLEAR(state->log_writer_type);
    Py_CLEAR(state->log_receipt_type);
    Py_CLEAR(state->log_wait_type);
    Py_CLEAR(state->log_gather_type);
    Py_CLEAR(state->blocks_type);
    Py_CLEAR(state->awaited_type);
    Py_CLEAR(state->pool_type);
    Py_CLEAR(state->pool_queue_type);
    Py_CLEAR(state->pool_read_type);
    Py_CLEAR(state->pool_commit_type);
    Py_CLEAR(state->export_type);
    Py_CLEAR(state->out_of_bounds);
    Py_CLEAR(state->done);
    Py_CLEAR(state->set_result);
    Py_CLEAR(state->run);
    return 0;
}

static void native_free(void *module) { native_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, native_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aiommap._native",
    .m_size = sizeof(struct native_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
