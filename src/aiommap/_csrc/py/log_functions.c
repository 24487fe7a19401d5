/* log_functions.c: functions on the bytes of segments that need no cursor. */
#include "log.h"

#include "../sys/crc32c.h"
#include "../sys/file_io.h"
#include "../sys/log_walk.h"

static PyObject *sum_crc32c(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data;
    unsigned int crc = 0;
    int way = -1;
    if (!PyArg_ParseTuple(args, "y*|Ii:crc32c", &data, &crc, &way))
        return NULL;
    uint32_t sum = crc;
    bool done = true;
    if (way < 0)
        sum = crc32c(crc, data.buf, (size_t)data.len);
    else
        done = crc32c_by((enum crc32c_way)way, &sum, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!done)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(sum);
}

/* Search as the arguments of a function of this module say; false with an exception. */
static bool run_search(PyObject *args, const char *format, struct log_search *search)
{
    unsigned long long salt, position, sequence, base;
    long long offset, end;
    int fd, error;
    if (!PyArg_ParseTuple(args, format, &fd, &salt, &position, &offset, &end, &sequence, &base))
        return false;
    search->fd = fd;
    search->salt = salt;
    search->position = position;
    search->offset = offset;
    search->end = end;
    search->sequence = sequence;
    search->base = base;
    Py_BEGIN_ALLOW_THREADS
    error = log_search(search);
    Py_END_ALLOW_THREADS
    if (error)
        os_error(error);
    return !error;
}

static PyObject *search_frames(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct log_search search = {0};
    if (!run_search(args, "iKKLLKK:search_frames", &search))
        return NULL;
    return Py_BuildValue("(KKILK)", (unsigned long long)search.proof,
                         (unsigned long long)search.records, (unsigned int)search.life,
                         (long long)search.last_end, (unsigned long long)search.summed);
}

static PyObject *find_record(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct log_search search = {.first_only = true};
    if (!run_search(args, "iKKLLKK:find_record", &search))
        return NULL;
    if (search.offset >= search.end || !search.records)
        Py_RETURN_NONE;
    return Py_BuildValue("(KLI)", (unsigned long long)search.sequence, (long long)search.offset,
                         (unsigned int)search.life);
}

static PyObject *start_writeback(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, error;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "iLL:start_writeback", &fd, &offset, &length))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = file_start_writeback(fd, offset, length);
    Py_END_ALLOW_THREADS
    if (error)
        return os_error(error);
    Py_RETURN_NONE;
}

PyMethodDef log_functions[] = { /* documented in _native_log.pyi */
    {"crc32c", sum_crc32c, METH_VARARGS, NULL},
    {"search_frames", search_frames, METH_VARARGS, NULL},
    {"find_record", find_record, METH_VARARGS, NULL},
    {"start_writeback", start_writeback, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
