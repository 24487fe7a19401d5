#include "mapping.h"

#include "state.h"

bool mapping_check(const Mapping *self)
{
    if (!self->closed && self->fork_generation == fork_generation)
        return true;
    PyErr_SetString(PyExc_ValueError,
                    self->closed ? "the mapping is closed" : "the mapping is another process's");
    return false;
}

bool mapping_check_range(const Mapping *self, int64_t offset, int64_t length, int64_t limit)
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
    return mapping_check_range(self, offset, length, self->size);
}

bool parse_range(Mapping *self, PyObject *args, long long *offset, long long *length)
{
    return PyArg_ParseTuple(args, "LL", offset, length) && mapping_range(self, *offset, *length);
}

struct region_options mapping_options(Mapping *self)
{
    return (struct region_options){.writable = self->writable,
                                   .private_copy = self->private_copy,
                                   .huge = self->huge,
                                   .damage = &self->damage,
                                   .file = self->private_copy ? NULL : &self->growth};
}
